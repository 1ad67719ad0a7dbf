#!/usr/bin/env bash
# Joins the Swarm. Usage: swarm-worker.sh MANAGER_ADDRESS
set -euo pipefail

manager=$1

if [[ $(docker info --format '{{.Swarm.LocalNodeState}}') == active ]]; then
    exit
fi

# Fetches the token that swarm-manager.sh hands out, once the manager is there.
fetch_token() {
    local deadline=$((SECONDS + 120)) token
    until token=$(timeout 10 cat <"/dev/tcp/$manager/2378") && [[ -n $token ]]; do
        if ((SECONDS > deadline)); then
            echo "no token from $manager: is the machine \"manager\" up?" >&2
            return 1
        fi
        sleep 1
    done 2>/dev/null
    printf '%s\n' "$token"
}

token=$(fetch_token)
docker swarm join --token "$token" "$manager:2377"
