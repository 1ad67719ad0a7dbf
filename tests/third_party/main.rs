//! Third-party programs communicate through memlb while the selection changes and the manager dies.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bulk;
mod datagrams;
mod half_closed;
mod idle;
mod ipv6;
mod path_mtu;
mod scenario;
mod shell;
mod slow;
mod web;
mod websocket;
