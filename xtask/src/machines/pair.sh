#!/usr/bin/env bash
# Makes a manager one of a pair, by the steps of docs/high-availability.md. The service then is at 192.168.56.100.
# Usage: pair.sh PACKAGE KEY
set -euo pipefail

package=$1
key=$2
own=1
[[ $(hostname) != manager2 ]] || own=2
other=$((3 - own))
files=/usr/share/doc/memlb/scripts/ha

if ! command -v keepalived >/dev/null; then
    echo "the image has no keepalived: cargo xtask machines down --purge, then up --pair again" >&2
    exit 1
fi

if ! command -v memlb >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet "$package"
fi
install --mode=600 "$key" /etc/memlb/peer.key
cat >/etc/memlb/memlb.toml <<EOF
[manager]
name = "manager$own"
interfaces = ["eth1"]
nat_sources = ["192.168.56.20$own"]
# The machines' other network.
peer_listen = "10.56.0.10$own:9997"

[[peer]]
name = "manager$other"
address = "10.56.0.10$other:9997"
key = "/etc/memlb/peer.key"

[[service]]
name = "web"
address = "192.168.56.100:80"
fallback = "reject"
workers = [
    { name = "worker1", address = "192.168.56.103:8081" },
    { name = "worker2", address = "192.168.56.104:8082" },
]
EOF
memlb check --shared

# One card is for clients and workers, and there is no IPv6.
# shellcheck disable=SC2016  # keepalived expands them
sed --expression='/^\$WORKERS=/s/eth2/eth1/' \
    --expression='s|192.168.57\(.20[12]/32 dev\) eth2|192.168.56\1 eth1|' \
    --expression='s/^\$ADDRESSES_6=.*/$ADDRESSES_6=/' --expression='/^    fd00::/d' \
    $files/keepalived.conf >/etc/keepalived/keepalived.conf
# On a busy host, an emulated machine may pause for longer than 0.36 s.
sed "s/advert_int 0.1/advert_int 1/" $files/memlb-pair.conf >/etc/keepalived/memlb-pair.conf
install --mode=755 $files/memlb-notify /etc/keepalived/
install -D --mode=644 $files/keepalived.service.d/memlb.conf /etc/systemd/system/keepalived.service.d/memlb.conf
systemctl daemon-reload
systemctl enable memlb-manager.service keepalived.service
systemctl restart memlb-manager.service
systemctl restart keepalived.service
# After a crash, only data on the disk is left.
sync
