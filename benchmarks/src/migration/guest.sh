#!/bin/busybox sh
# shellcheck shell=dash
# A worker as a virtual machine: its first process. /worker says its address, and with what its agent is started. If CRIU
# moves only the server, ROLE says whether this machine is the source or the destination, and OWN is its own address.
export PATH=/bin HOME=/tmp TMPDIR=/tmp

# The server has a PID there that no process of the destination has.
PID=20000

# By this, the shell finds its other commands.
busybox mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
exec >/dev/ttyS0 2>&1 </dev/null
for module in /modules/*; do
    insmod "$module"
done
# shellcheck source=/dev/null
. /worker

# Sends the server to the machine at address $1.
depart() {
    # From here on, no packet reaches the server: this machine would answer by RST.
    ip address delete "$ADDRESS" dev eth0 &&
        criu dump --tree "$PID" --images-dir /tmp/images --log-file /tmp/criu.log -v4 --manage-cgroups=ignore \
            --tcp-established --network-lock nftables &&
        tar -c -C /tmp/images . | nc "$1" 7000 &&
        echo "$(cat /tmp/images/* | wc -c) bytes"
}

# Starts the server that has come.
arrive() {
    # CRIU removes the table when the connections are complete.
    nft "add table inet CRIU-$PID; add chain inet CRIU-$PID input { type filter hook input priority 0; };
        add rule inet CRIU-$PID input meta l4proto { tcp, udp } th dport $PORT drop" &&
        ip address add "$ADDRESS" dev eth0 &&
        arping -q -U -c 1 -I eth0 "${ADDRESS%/*}" &&
        criu restore --images-dir /tmp/images --log-file /tmp/criu.log -v4 --manage-cgroups=ignore \
            --tcp-established --restore-detached
}

ip link set lo up
ip link set eth0 up
[ -z "$ROLE" ] || ip address add "$OWN" dev eth0
[ "$ROLE" = destination ] || ip address add "$ADDRESS" dev eth0
if [ -n "$AGENT" ]; then
    # Without the worker's address, it sends nothing.
    # shellcheck disable=SC2086  # as many as there are
    /bin/memlb agent $AGENT >/tmp/agent.log 2>&1 &
    # A socket that is there before the DSR translator is attached answers from its own address.
    [ -z "$TRANSLATES" ] || until grep -q "the DSR translator is attached" /tmp/agent.log; do
        sleep 0.2
    done
fi
if [ -z "$ROLE" ]; then
    /tasks/server serve "$PORT"
    poweroff -f
fi

# CRIU notes there what this kernel can do.
mount -t tmpfs tmpfs /run
criu check
mkdir /tmp/images
if [ "$ROLE" = source ]; then
    echo $((PID - 1)) >/proc/sys/kernel/ns_last_pid
    setsid /tasks/server serve "$PORT" </dev/null >/dev/null 2>&1 &
else
    nc -l -p 7000 -e tar -x -C /tmp/images &
fi
stty -F /dev/ttyS1 raw -echo
exec >/dev/ttyS1 2>&1 </dev/ttyS1
echo ready
while read -r order; do
    if $order; then
        echo ready
    else
        tail -n 5 /tmp/criu.log
        echo failed
    fi
done
