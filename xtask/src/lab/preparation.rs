//! What every lab needs before it starts: the names of its parts, the tools, and root.

use std::{env, path::PathBuf};

use anyhow::{Result, ensure};
use memlb_tests::{ClusterPaths, cluster::BINARY};

use crate::{
    build,
    interrupt::Interrupt,
    privilege::{is_root, restart_as_root},
};

/// Prefix of the names of the lab's namespaces.
pub const PREFIX: &str = "memlb-";

/// Values of `manager.attach`.
pub const ATTACH: [&str; 3] = ["auto", "tc", "xdp"];

/// Builds memlb, installs the tools and restarts as root, unless a lab or a manager is in the way.
pub fn prepare(provide_tools: fn() -> Result<()>) -> Result<Interrupt> {
    let paths = paths();
    ensure!(
        !paths.is_taken(),
        "a lab is up, or an earlier one was not removed: `cargo xtask lab down` removes it"
    );
    ensure!(
        !paths.pin_path.exists(),
        "a memlb manager of this machine has its pins in {}, where the lab needs to pin its own; \
         `memlb unload` removes them",
        paths.pin_path.display()
    );
    let given = env::var_os(BINARY).map(PathBuf::from);
    if is_root() && given.is_some() {
        return Interrupt::catch();
    }
    let memlb = given.map_or_else(build::memlb, Ok)?;
    provide_tools()?;
    Err(restart_as_root(BINARY, &memlb))
}

/// Returns the lab's paths. The pins are at the manager's default, so that bpftool commands of the documents work.
pub fn paths() -> ClusterPaths {
    ClusterPaths {
        prefix: PREFIX.into(),
        directory: "/run/memlb-lab".into(),
        pin_path: "/sys/fs/bpf/memlb".into(),
    }
}
