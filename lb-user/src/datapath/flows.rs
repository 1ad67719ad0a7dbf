//! Single connections, read from the pinned flow table by whoever asks.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use lb_common::maps::{Flow, FlowKey, direction, ended, name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{bpffs::open_map, stats::monotonic_ns};

/// One connection whose handshake is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub client: SocketAddrV4,
    pub service: SocketAddrV4,
    pub backend: u32,
    pub backend_address: SocketAddrV4,
    pub state: ConnectionState,
    pub age: Duration,
    /// Since the last packet in either direction.
    pub idle: Duration,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    Open,
    /// One side has said that it sends no more.
    Closing,
    /// Both have, or one has reset the connection. The entry stays until its place is needed.
    Ended,
}

impl ConnectionState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Ended => "ended",
        }
    }
}

/// Reads all connections, the youngest first. The table changes while it is read; what vanishes
/// meanwhile is left out.
///
/// # Errors
///
/// Names the map that could not be opened.
pub fn read_connections(pin_path: &Path) -> Result<Vec<Connection>> {
    let entries: BTreeMap<FlowKey, Flow> = open_flows(pin_path)?
        .iter()
        .filter_map(Result::ok)
        .collect();
    let now = monotonic_ns()?;
    let requests = entries
        .iter()
        .filter(|(_, flow)| flow.direction == direction::REQUEST && flow.superseded == 0);
    let mut connections: Vec<Connection> = requests
        .map(|(key, flow)| connection(key, flow, entries.get(&flow.leaves.reversed()), now))
        .collect();
    connections.sort_by_key(|connection| connection.age);
    Ok(connections)
}

/// Opens the pinned flow table.
pub(super) fn open_flows(pin_path: &Path) -> Result<HashMap<MapData, FlowKey, Flow>> {
    let data = open_map(pin_path, name::FLOWS)?;
    HashMap::try_from(Map::LruHashMap(data)).context("open map flows")
}

fn connection(key: &FlowKey, flow: &Flow, twin: Option<&Flow>, now: u64) -> Connection {
    let twin_ended = twin.map_or(0, |twin| twin.ended);
    let state = match (flow.ended, twin_ended) {
        (0, 0) => ConnectionState::Open,
        (one, other) if ended::both(one, other) => ConnectionState::Ended,
        _ => ConnectionState::Closing,
    };
    let seen = flow
        .last_seen_ns
        .max(twin.map_or(0, |twin| twin.last_seen_ns));
    Connection {
        client: address(key.source, key.source_port),
        service: address(key.destination, key.destination_port),
        backend: flow.backend,
        backend_address: address(flow.leaves.destination, flow.leaves.destination_port),
        state,
        age: Duration::from_nanos(now.saturating_sub(flow.created_ns)),
        idle: Duration::from_nanos(now.saturating_sub(seen)),
        packets_in: flow.packets,
        bytes_in: flow.bytes,
        packets_out: twin.map_or(0, |twin| twin.packets),
        bytes_out: twin.map_or(0, |twin| twin.bytes),
    }
}

fn address(address: [u8; 4], port: [u8; 2]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port))
}
