//! Real programs of other people talk through memlb, while the selection moves and the manager dies.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bulk;
mod datagrams;
mod half_closed;
mod idle;
mod ipv6;
mod path_mtu;
mod scene;
mod shell;
mod slow;
mod web;
mod websocket;
