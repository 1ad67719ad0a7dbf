//! Real programs of other people talk through memlb, while the selection moves and the manager dies.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bulk;
mod half_closed;
mod idle;
mod scene;
mod shell;
mod slow;
mod web;
mod websocket;
