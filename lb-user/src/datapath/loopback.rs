//! The loopback interface's part in serving clients on the manager itself.
//!
//! A worker's answer to such a client comes in from the network and is moved to `lo`, bearing the
//! service's address as its source. The kernel refuses its own addresses as sources unless
//! `accept_local` is set; on `lo`, where only the machine itself can send, that opens nothing.

use std::fs;

use anyhow::{Context, Result};

const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";

pub fn accept_local() -> Result<u32> {
    let text = fs::read_to_string(ACCEPT_LOCAL).with_context(|| format!("read {ACCEPT_LOCAL}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("understand {ACCEPT_LOCAL}: {text:?}"))
}

pub fn set_accept_local(value: u32) -> Result<()> {
    if accept_local()? == value {
        return Ok(());
    }
    fs::write(ACCEPT_LOCAL, value.to_string()).with_context(|| format!("write {ACCEPT_LOCAL}"))
}
