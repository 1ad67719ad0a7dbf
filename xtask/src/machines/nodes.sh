# shellcheck shell=bash
# For scripts/vagrant/smoke.sh: access to the machines of `cargo xtask machines up`. Differs from Vagrant's in the
# transport only.

# shellcheck disable=SC2154  # smoke.sh sets it
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
