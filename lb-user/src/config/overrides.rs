//! Settings given on the command line, which go before those in the file.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// What the command line says; it is checked together with the file, by the same rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Overrides {
    /// Attach to this interface; may be repeated, replaces manager.interfaces
    #[arg(long = "interface", value_name = "IF")]
    pub interfaces: Vec<String>,

    /// Where to attach the packet programs
    #[arg(long, value_name = "auto|tc|xdp")]
    pub attach: Option<String>,

    /// Receive heartbeats at this UDP address
    #[arg(long, value_name = "ADDR:PORT")]
    pub heartbeat_listen: Option<String>,

    /// Pin maps and links in this directory of a BPF file system
    #[arg(long, value_name = "DIR")]
    pub pin_path: Option<PathBuf>,

    /// Serve `memlb status` and the other verbs at this socket
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,

    /// Keep the operator's orders (drained workers, weights) in this file
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,

    /// Append events to this file as JSON lines; "" keeps none
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub event_log: Option<PathBuf>,

    /// Also accept the heartbeats of the 2018 workers
    #[arg(long)]
    pub legacy_heartbeats: bool,

    /// Serve metrics, API and web page at this TCP address; "" serves none
    #[arg(long, value_name = "ADDR:PORT")]
    pub http_listen: Option<String>,

    /// A worker is down after this time without a heartbeat, e.g. 1500ms
    #[arg(long, value_name = "DURATION")]
    pub down_after: Option<String>,

    /// Policy of all services: memory, balanced, round_robin, ...
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,

    /// Difference of memory that moves the selection, for all services: auto, 64MiB or 10%
    #[arg(long, value_name = "THRESHOLD")]
    pub threshold: Option<String>,

    /// Any setting of the file: failover.up_after=3, service.web.threshold=10%; may be repeated
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
}
