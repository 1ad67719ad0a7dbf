#!/usr/bin/env bash
# Shows that the lab selects by memory and fails over; succeeds only if it does.
# Usage: smoke.sh
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=nodes.sh
source "${MEMLB_NODES:-$here/nodes.sh}"

service=http://192.168.56.101/

main() {
    cd "$here"
    trap restore EXIT

    show_status
    local first second
    first=$(wait_for_a_worker)
    second=$([[ $first == Worker1 ]] && echo Worker2 || echo Worker1)
    report "$first has the most memory" "$first"

    step "$first's memory is filled" "$second" fill_memory "${first,}"
    step "the link of $second is cut" "$first" cut_off "${second,}"
    step "the link of $first is cut, too" Manager cut_off "${first,}"
    step "$first is back" "$first" reconnect "${first,}"
    step "$second is back, with more memory" "$second" reconnect "${second,}"
    show_status
    echo "Every step had the expected outcome."
}

# step WHAT PAGE COMMAND...: does something and waits until clients get PAGE.
step() {
    local what=$1 page=$2
    shift 2
    local started_at=$EPOCHREALTIME
    "$@"
    wait_for "$page" || fail "$what: clients do not get $page, but: $(current_page)"
    report "$what" "$page" "$started_at"
}

# wait_for PAGE: waits up to a minute until clients get PAGE.
wait_for() {
    local deadline=$((SECONDS + 60))
    until [[ $(current_page) == "$1" ]]; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

wait_for_a_worker() {
    local deadline=$((SECONDS + 120)) page
    until page=$(current_page) && [[ $page == Worker[12] ]]; do
        ((SECONDS < deadline)) || fail "no worker serves, but: $page"
        sleep 0.5
    done
    echo "$page"
}

current_page() {
    client "$service" | head --lines=1 || true
}

# report WHAT PAGE [SINCE]
report() {
    local took=
    if [[ -n ${3:-} ]]; then
        took="after $(((${EPOCHREALTIME/[.,]/} - ${3/[.,]/}) / 1000)) ms"
    fi
    printf '%-40s %-8s %s\n' "$1" "$2" "$took"
}

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

# Undoes what the steps have done to the machines, wherever they ended.
restore() {
    local node
    for node in worker1 worker2; do
        reconnect "$node" >/dev/null 2>&1 || true
        free_memory "$node" >/dev/null 2>&1 || true
    done
}

main
