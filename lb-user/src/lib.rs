//! memlb: a kernel-path load balancer steered by worker memory.
//!
//! [`manager`] is the loop between the world and the pure decision core, [`lb_core`]: it feeds heartbeats and
//! time in, and carries the core's commands out to the [`datapath`]. [`agent`] is its counterpart
//! on each worker; [`control`] is how an operator asks a running manager.

pub mod addresses;
pub mod agent;
pub mod config;
pub mod control;
pub mod datapath;
pub mod deny;
pub mod doctor;
mod dual_stack;
mod encoding;
pub mod event_log;
pub mod explain;
pub mod feed;
pub mod flows;
pub mod heartbeat;
pub mod history;
pub mod http;
pub mod import;
pub mod keys;
pub mod manager;
pub mod meters;
pub mod reception;
pub mod simulate;
mod sockets;
pub mod status;
pub mod supervisor;
pub mod trace;
