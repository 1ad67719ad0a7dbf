#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process: runs the tasks of /tasks/list, and reports their results on the second serial port.
export PATH=/bin HOME=/tmp TMPDIR=/tmp
export MEMLB_BINARY=/bin/memlb MEMLB_REQUIRE_ROOT=1 MEMLB_SPARSE=1 RUST_BACKTRACE=1

# busybox finds its applets by /proc/self/exe.
busybox mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*; do
    insmod "$module"
done
ip link set lo up
# The default of 4096 open files is too low.
ulimit -Hn 65536
# The sizes that connection tracking has on a machine with more memory.
if [ -e /proc/sys/net/nf_conntrack_max ]; then
    echo 65536 >/sys/module/nf_conntrack/parameters/hashsize
    echo 65536 >/proc/sys/net/nf_conntrack_max
fi
# Tests set times more than a minute in the past, which are not before the boot then. An idle machine's clock jumps, so
# this costs no time.
sleep 90

stty -F /dev/ttyS1 raw
exec >/dev/ttyS1 2>&1 </dev/null
echo "memlb: Linux $(uname -r)"
while read -r name arguments; do
    echo "memlb: running $name"
    # shellcheck disable=SC2086  # separate arguments
    "/tasks/$name" $arguments </dev/null
    echo "memlb: $name ended with $?"
done </tasks/list
echo "memlb: the end"
poweroff -f
