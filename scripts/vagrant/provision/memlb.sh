#!/usr/bin/env bash
# Installs memlb's package and starts its service. Usage: memlb.sh manager|worker PACKAGE MANAGER
#
# PACKAGE is the file that `cargo xtask package` made, MANAGER the manager's address. With DESTDIR, the script installs
# the files below that directory only, and starts no service.
set -euo pipefail

role=$1
package=$2
manager=$3
root=${DESTDIR:-}

if [[ -n $root ]]; then
    dpkg-deb --extract "$package" "$root"
else
    # --reinstall, in case the same version was built again. apt refuses a package for a newer Debian.
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --reinstall \
        --option=Dpkg::Options::=--force-confold "$package"
fi

case $role in
manager)
    unit=memlb-manager.service
    # The package's configuration is that of this lab.
    "$root/usr/bin/memlb" check "$root/etc/memlb/memlb.toml"
    ;;
worker)
    unit=memlb-agent.service
    echo "MEMLB_AGENT=\"--manager $manager\"" >"$root/etc/default/memlb-agent"
    ;;
*)
    echo "no such role: $role" >&2
    exit 2
    ;;
esac

if [[ -z $root ]]; then
    systemctl enable "$unit"
    systemctl restart "$unit"
fi
