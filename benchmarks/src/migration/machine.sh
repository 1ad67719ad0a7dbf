#!/bin/busybox sh
# shellcheck shell=dash
# A worker as a virtual machine: its first process. /worker says its address, and with what its agent is started.
export PATH=/bin HOME=/tmp TMPDIR=/tmp

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
ip link set lo up
ip link set eth0 up
ip address add "$ADDRESS" dev eth0
if [ -n "$AGENT" ]; then
    # shellcheck disable=SC2086  # as many as there are
    /bin/memlb agent $AGENT >/tmp/agent.log 2>&1 &
    # A socket that is there before the DSR translator is attached answers from its own address.
    [ -z "$TRANSLATES" ] || until grep -q "the DSR translator is attached" /tmp/agent.log; do
        sleep 0.2
    done
fi
/tasks/server serve "$PORT"
poweroff -f
