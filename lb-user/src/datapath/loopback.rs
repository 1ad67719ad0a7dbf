//! Setting `accept_local` of `lo`, for clients on the manager.
//!
//! A worker's reply to such a client is redirected to `lo` with the service's address as its source. The kernel drops
//! packets with its own addresses as source unless `accept_local` is set. On `lo` only this machine can send, so the
//! setting is safe.

use std::fs;

use anyhow::{Context, Result};

const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";

pub fn accept_local() -> Result<u32> {
    let text = fs::read_to_string(ACCEPT_LOCAL).with_context(|| format!("read {ACCEPT_LOCAL}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("parse {ACCEPT_LOCAL}: {text:?}"))
}

pub fn set_accept_local(value: u32) -> Result<()> {
    if accept_local()? == value {
        return Ok(());
    }
    fs::write(ACCEPT_LOCAL, value.to_string()).with_context(|| format!("write {ACCEPT_LOCAL}"))
}
