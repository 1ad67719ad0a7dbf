//! The status of peers, as views show it.

use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

lb_common::named_enum! {
    /// The state of the link to a peer.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum PeerState {
        /// No session: the peer cannot be reached, or has not answered yet.
        #[default]
        Connecting = "connecting",
        /// One of the two refuses the other: another key, another protocol.
        Refused = "refused",
        /// Records are exchanged.
        Connected = "connected",
    }
}

/// The replication with one peer, in both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerStatus {
    pub name: String,
    /// Where the peer listens.
    pub address: String,
    pub state: PeerState,
    pub state_since_ms: u64,
    /// Why there is no session, as a sentence.
    pub reason: Option<String>,
    /// Version of the protocol that both speak.
    pub protocol: Option<u16>,
    /// Whether the peer knows all connections of this manager.
    pub complete: bool,
    /// Whether this manager knows all connections of the peer.
    pub received_complete: bool,
    /// Age of the oldest record that the peer has not acknowledged; 0: all are acknowledged.
    pub lag_us: Option<u64>,
    /// Time from reading a record to its acknowledgement: the median of the last 1,024 frames.
    pub lag_p50_us: Option<u64>,
    /// The same: the 99th percentile.
    pub lag_p99_us: Option<u64>,
    /// Records that wait to be sent.
    pub queue_records: u64,
    pub records_sent: u64,
    pub records_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// How often all connections were sent to the peer.
    pub resyncs: u64,
    /// Records for which the queue or the kernel's ring had no room.
    pub lost_records: u64,
    /// Frames and hellos that were refused, by reason.
    pub refused_frames: BTreeMap<String, u64>,
    /// The peer's records by their outcome on this manager.
    pub intake: BTreeMap<String, u64>,
    /// Packets of unknown connections that were relayed to the peer.
    pub relayed_packets: u64,
    /// Whether both managers have equal settings of services and workers; absent before the first session.
    pub configuration_matches: Option<bool>,
    /// The addresses from which the peer connects to workers in mode `nat`.
    pub nat_sources: Vec<IpAddr>,
    /// The peer's version of memlb; empty before the first session.
    pub version: String,
}
