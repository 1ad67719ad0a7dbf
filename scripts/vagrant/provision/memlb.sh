#!/usr/bin/env bash
# Installs memlb as a service. Usage: memlb.sh manager|worker DIRECTORY
#
# DIRECTORY holds the binary and the unit. With DESTDIR set, everything is
# only put below that directory, and no service is started.
set -euo pipefail

role=$1
from=$2
root=${DESTDIR:-}

# A binary that was built for another libc says so here, not in a journal.
chmod +x "$from/memlb"
if ! "$from/memlb" --version; then
    echo "this memlb does not run here: build it on Debian 12 (README.md tells how)" >&2
    exit 1
fi

install -D --mode=755 "$from/memlb" "$root/usr/local/bin/memlb"

case $role in
manager)
    unit=memlb-manager.service
    # The built-in example is this very lab.
    install -D --mode=644 <("$from/memlb" check --example) "$root/etc/memlb/memlb.toml"
    "$from/memlb" check "$root/etc/memlb/memlb.toml"
    ;;
worker)
    unit=memlb-agent.service
    ;;
*)
    echo "no such role: $role" >&2
    exit 2
    ;;
esac
install -D --mode=644 "$from/$unit" "$root/etc/systemd/system/$unit"

if [[ -z $root ]]; then
    systemctl daemon-reload
    systemctl enable "$unit"
    systemctl restart "$unit"
fi
