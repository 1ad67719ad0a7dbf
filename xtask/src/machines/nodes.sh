# shellcheck shell=bash
# How scripts/vagrant/smoke.sh reaches the machines of `cargo xtask machines up`: as those of Vagrant, but for the way.

# shellcheck disable=SC2154  # smoke.sh knows where it is
# shellcheck source=../../../scripts/vagrant/nodes.sh
source "$here/nodes.sh"

client() {
    nsenter --net=/run/netns/memlb-machines curl --silent --max-time 1 "$@"
}

on() {
    local node=$1
    shift
    "$MEMLB_XTASK" machines ssh "$node" "$*" </dev/null
}
