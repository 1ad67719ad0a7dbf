//! A machine for documents: what their commands write to it is gone afterwards.

use std::{panic, process::Command, thread};

use memlb_tests::command::output;
use nix::sched::{CloneFlags, unshare};

/// Pins and sockets of its own, and layers over what lies where programs and administrators look.
const MOUNTS: &str = "
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
for folder in /etc /var /usr/share; do
    layer=/run/layers$folder
    mkdir -p $layer/upper $layer/work
    mount -t overlay -o lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work overlay $folder
done
mkdir -p /etc/memlb/keys /usr/share/man/man1 /usr/share/bash-completion/completions
";

/// Runs `work` on a thread whose mounts, and those of all that it starts, are nobody else's.
pub fn in_a_world_of_its_own(work: impl FnOnce() + Send) {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        output(Command::new("sh").args(["-ec", MOUNTS])).unwrap();
        work();
    };
    thread::scope(|scope| {
        if let Err(cause) = scope.spawn(inside).join() {
            panic::resume_unwind(cause);
        }
    });
}
