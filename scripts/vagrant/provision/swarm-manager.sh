#!/usr/bin/env bash
# Forms the Swarm and starts an Apache service for each node.
# Usage: swarm-manager.sh MANAGER_ADDRESS DIRECTORY_WITH_UNITS
set -euo pipefail

address=$1
from=$2

if [[ $(docker info --format '{{.Swarm.LocalNodeState}}') != active ]]; then
    docker swarm init --advertise-addr "$address"
fi

install --mode=644 "$from/swarm-token.socket" "$from/swarm-token@.service" /etc/systemd/system
systemctl daemon-reload
systemctl enable --now swarm-token.socket

# apache NODE PORT PAGE
apache() {
    local node=$1 port=$2 page=$3
    if docker service inspect "web-$node" >/dev/null 2>&1; then
        return
    fi
    if ! docker config inspect "page-$node" >/dev/null 2>&1; then
        printf '%s\n' "$page" | docker config create "page-$node" -
    fi
    # Published on the node itself, not by Swarm's routing mesh.
    # Detached, because the workers have not joined yet.
    docker service create --detach --name "web-$node" \
        --constraint "node.hostname==$node" \
        --publish "mode=host,published=$port,target=80" \
        --config "source=page-$node,target=/usr/local/apache2/htdocs/index.html" \
        httpd:2.4
}

apache manager 8080 Manager
apache worker1 8081 Worker1
apache worker2 8082 Worker2
