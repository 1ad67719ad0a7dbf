//! memlb: a kernel-path load balancer steered by worker memory.

pub mod config;
pub mod core;
pub mod heartbeat;
