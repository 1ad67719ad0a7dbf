# shellcheck shell=bash
# For scripts/vagrant/smoke.sh: access to the nodes of `cargo xtask lab up`.

client() {
    nsenter --net=/run/netns/memlb-client -- curl --silent --max-time 1 "$@"
}

show_status() {
    "$MEMLB_BINARY" status --control-socket /run/memlb-lab/manager.sock
}

cut_off() {
    ip -netns memlb-switch link set "$1" down
}

reconnect() {
    ip -netns memlb-switch link set "$1" up
}

fill_memory() {
    set_available "$1" 200000
}

free_memory() {
    set_available "$1" 460800
}

set_available() {
    sed --in-place "s/^MemAvailable:.*/MemAvailable: $2 kB/" "/run/memlb-lab/$1.meminfo"
}
