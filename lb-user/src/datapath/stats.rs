//! What the programs counted, read from the pins by whoever asks; nothing here writes.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, Map, MapData, PerCpuArray},
};
use lb_common::{
    maps::{Counter, Flow, FlowKey, Handshake, Settings, Traffic, direction, ended, name},
    verdict::Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{bpffs::open_map, flows::open_flows};

/// Counters since the maps were made, and connections at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub backends: BTreeMap<u32, BackendTraffic>,
    pub verdicts: BTreeMap<&'static str, Packets>,
    pub maps: BTreeMap<&'static str, MapFill>,
}

/// How full a map is; one that forgets its longest unused entry is often full in good health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapFill {
    pub entries: u64,
    pub capacity: u64,
}

/// One backend's share. `in` is towards the backend; bytes are those of whole frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendTraffic {
    /// Connections open now.
    pub flows: u64,
    /// Handshakes begun and not completed yet.
    pub half_open: u64,
    /// Connections begun since the maps were made.
    pub connections: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Packets {
    pub packets: u64,
    pub bytes: u64,
}

impl Stats {
    /// Reads the maps pinned in `pin_path`. A flow silent for longer than `idle` is not counted.
    pub fn read(pin_path: &Path, idle: Duration) -> Result<Self> {
        let mut stats = Self::read_totals(pin_path)?;
        let now = monotonic_ns()?;
        let idle = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        for backend in stats.open_connections(pin_path, now, idle)? {
            stats.backends.entry(backend).or_default().flows += 1;
        }
        for backend in stats.handshakes(pin_path, now)? {
            stats.backends.entry(backend).or_default().half_open += 1;
        }
        Ok(stats)
    }

    /// Reads only what is counted since the maps were made, which is cheap at any number of flows.
    pub fn read_totals(pin_path: &Path) -> Result<Self> {
        let mut stats = Self::default();
        let verdicts: PerCpuArray<_, Counter> = per_cpu(pin_path, name::VERDICTS)?;
        for verdict in Verdict::ALL {
            let values = verdicts
                .get(&(*verdict as u32), 0)
                .context("read map verdicts")?;
            let mut sum = Packets::default();
            for Counter { packets, bytes } in values.iter() {
                sum.packets += packets;
                sum.bytes += bytes;
            }
            stats.verdicts.insert(verdict.name(), sum);
        }
        let traffic: PerCpuArray<_, Traffic> = per_cpu(pin_path, name::TRAFFIC)?;
        for id in 1..traffic.len() {
            let values = traffic.get(&id, 0).context("read map traffic")?;
            let mut sum = BackendTraffic::default();
            for cpu in values.iter() {
                sum.connections += cpu.connections;
                sum.packets_in += cpu.packets_in;
                sum.bytes_in += cpu.bytes_in;
                sum.packets_out += cpu.packets_out;
                sum.bytes_out += cpu.bytes_out;
            }
            if sum != BackendTraffic::default() {
                stats.backends.insert(id, sum);
            }
        }
        Ok(stats)
    }

    /// Reads the flow table: how full it is, and the backends of its connections, one for each that
    /// is not over. The table changes while it is read; what vanishes meanwhile is left out.
    fn open_connections(&mut self, pin_path: &Path, now: u64, idle: u64) -> Result<Vec<u32>> {
        let capacity = open_map(pin_path, name::FLOWS)?
            .info()
            .context("ask for the size of map flows")?;
        let entries: BTreeMap<FlowKey, Flow> = open_flows(pin_path)?
            .iter()
            .filter_map(Result::ok)
            .collect();
        let fill = MapFill {
            entries: entries.len() as u64,
            capacity: capacity.max_entries().into(),
        };
        self.maps.insert(name::FLOWS, fill);
        let is_open = |flow: &&Flow| {
            let twin = entries.get(&flow.leaves.reversed());
            flow.direction == direction::REQUEST
                && flow.superseded == 0
                && !ended::both(flow.ended, twin.map_or(0, |twin| twin.ended))
                && now.saturating_sub(flow.last_seen_ns) <= idle
        };
        let open = entries.values().filter(is_open);
        Ok(open.map(|flow| flow.backend).collect())
    }

    /// The same for the handshakes under way.
    fn handshakes(&mut self, pin_path: &Path, now: u64) -> Result<Vec<u32>> {
        let settings: Array<_, Settings> =
            Array::try_from(Map::Array(open_map(pin_path, name::SETTINGS)?))
                .context("open map settings")?;
        let settings = settings.get(&0, 0).context("read map settings")?;
        let table: Array<_, Handshake> =
            Array::try_from(Map::Array(open_map(pin_path, name::HALF_OPEN)?))
                .context("open map half_open")?;
        let under_way = |handshake: &Handshake| {
            handshake.is_whole()
                && now.saturating_sub(handshake.syn_ns) <= settings.half_open_idle_ns
        };
        let present: Vec<_> = table
            .iter()
            .filter_map(Result::ok)
            .filter(under_way)
            .map(|handshake| handshake.backend)
            .collect();
        let fill = MapFill {
            entries: present.len() as u64,
            capacity: table.len().into(),
        };
        self.maps.insert(name::HALF_OPEN, fill);
        Ok(present)
    }
}

fn per_cpu<V: Pod>(pin_path: &Path, map: &str) -> Result<PerCpuArray<MapData, V>> {
    PerCpuArray::try_from(Map::PerCpuArray(open_map(pin_path, map)?))
        .with_context(|| format!("open map {map}"))
}

pub(super) fn monotonic_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("read CLOCK_MONOTONIC")?;
    let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}
