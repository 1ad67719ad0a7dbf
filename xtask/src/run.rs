//! Builds `memlb` and starts its manager on this machine.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build,
    privilege::{as_root, replace_process},
    workspace::print_message,
};

/// Becomes `memlb manager` with `arguments`.
pub fn manager(arguments: &[OsString]) -> Result<()> {
    let mut command = as_root(build::memlb()?);
    command.arg("manager").args(arguments);
    print_message(
        "starting memlb manager; Ctrl-C ends the process; the packet programs continue until `cargo xtask run -- --detach` removes them",
    );
    Err(replace_process(command))
}
