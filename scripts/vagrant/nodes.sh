# shellcheck shell=bash
# How smoke.sh reaches the virtual machines.

# Requests a page as a client: this host is on the lab's network.
client() {
    curl --silent --max-time 1 "$@"
}

show_status() {
    on manager sudo memlb status
}

# Cuts the link of a worker. Vagrant's own connection uses another interface.
cut_off() {
    on "$1" sudo ip link set eth1 down
}

reconnect() {
    on "$1" sudo ip link set eth1 up
}

# Takes 250 MiB of a worker's memory, until free_memory.
fill_memory() {
    on "$1" sudo systemd-run --quiet --unit=memlb-smoke --collect \
        sh -c '"head -c 250M /dev/zero | tail -c 250M | sleep infinity"'
}

free_memory() {
    on "$1" sudo systemctl stop memlb-smoke
}

on() {
    local node=$1
    shift
    vagrant ssh "$node" --command "$*" </dev/null
}
