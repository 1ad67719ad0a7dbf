#!/usr/bin/env bash
# Installs Docker from Debian. Usage: docker.sh
set -euo pipefail

if ! command -v dockerd >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    apt-get install --yes --quiet --no-install-recommends docker.io curl
fi
systemctl enable --now docker.service
