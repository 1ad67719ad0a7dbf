//! Mounts for the commands of documents, whose changes are discarded.

use std::{panic, process::Command, thread};

use memlb_tests::{command::output, mounts::PRIVATE_MOUNTS};
use nix::sched::{CloneFlags, unshare};

/// Layers over the folders where programs and administrators look.
const LAYERS: &str = "
for folder in /etc /var /usr/share; do
    layer=/run/layers$folder
    mkdir -p $layer/upper $layer/work
    mount -t overlay -o lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work overlay $folder
done
mkdir -p /etc/memlb/keys /usr/share/man/man1 /usr/share/bash-completion/completions
";

/// Runs `work` on a thread with a mount namespace of its own, which all processes that it starts share.
pub fn with_private_mounts(work: impl FnOnce() + Send) {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let mounts = [PRIVATE_MOUNTS, LAYERS].concat();
        output(Command::new("sh").args(["-ec", &mounts])).unwrap();
        work();
    };
    thread::scope(|scope| {
        if let Err(cause) = scope.spawn(inside).join() {
            panic::resume_unwind(cause);
        }
    });
}
