//! memlb: a kernel-path load balancer steered by worker memory.
//!
//! [`manager`] is the loop around the pure decision core, [`lb_core`]: it passes heartbeats and time to the core, and
//! writes the core's map updates to the maps of the [`datapath`]. [`control`] and [`http`] send requests to the manager
//! through a [`manager::ManagerHandle`]; [`daemon`] starts all three. [`agent`] runs on each worker and sends
//! heartbeats to the manager.

mod abort_on_drop;
pub mod addresses;
pub mod agent;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod deny;
pub mod doctor;
mod dual_stack;
mod encoding;
pub mod event_filter;
pub mod event_log;
pub mod event_stream;
pub mod explain;
pub mod flows;
pub mod handover;
pub mod heartbeat;
pub mod heartbeat_receiver;
pub mod history;
pub mod http;
pub mod import;
pub mod keys;
pub mod manager;
pub mod membership;
pub mod metrics;
pub mod peer;
pub mod peer_report;
pub mod pinned;
pub mod processes;
pub mod runtime_thread;
pub mod simulate;
mod sock_diag;
mod sockets;
pub mod status;
pub mod swarm;
pub mod systemd;
mod token_bucket;
pub mod trace;
mod worker_name;
pub mod worker_source;
