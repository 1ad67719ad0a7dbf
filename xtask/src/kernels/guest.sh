#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first and only process of its own: runs what /tasks/list names, and says on the
# second serial port what becomes of them.
export PATH=/bin HOME=/tmp TMPDIR=/tmp
export MEMLB_BINARY=/bin/memlb MEMLB_REQUIRE_ROOT=1 MEMLB_SPARSE=1 RUST_BACKTRACE=1

# By this, the shell finds its other commands.
busybox mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*; do
    insmod "$module"
done
ip link set lo up
# The default of 4096 is too few for many connections.
ulimit -Hn 65536
# Connection tracking, where it is loaded, has these sizes on a machine with more memory.
if [ -e /proc/sys/net/nf_conntrack_max ]; then
    echo 65536 >/sys/module/nf_conntrack/parameters/hashsize
    echo 65536 >/proc/sys/net/nf_conntrack_max
fi
# Tests let flows grow older than a minute, which they cannot be where the clock has just begun. While the
# machine has nothing to do, its time passes at once.
sleep 90

stty -F /dev/ttyS1 raw
exec >/dev/ttyS1 2>&1 </dev/null
echo "memlb: Linux $(uname -r)"
while read -r name arguments; do
    echo "memlb: running $name"
    # shellcheck disable=SC2086  # as many as there are
    "/tasks/$name" $arguments </dev/null
    echo "memlb: $name ended with $?"
done </tasks/list
echo "memlb: the end"
poweroff -f
