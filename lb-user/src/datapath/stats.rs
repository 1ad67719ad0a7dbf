//! Counters of the programs, read from the pins. Read only.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use lb_common::{
    address::{V4, V6},
    maps::{Backend, Counter, Handshake, ServiceRefusals, Settings, Traffic, mode, name},
    verdict::Verdict,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    adopt::settings,
    capacity::{is_allocated, nat_port_count},
    clock::monotonic_ns,
    family::{Family, from_mapped},
    flows::{FlowClock, is_over, read_flows, requests},
    layout::{LayoutError, open_map},
    named_map::{ArrayMap, PerCpuMap},
};

/// Counters since the maps were created, and present connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub backends: BTreeMap<u32, BackendTraffic>,
    /// By service id: the services of which the manager has refused connections.
    pub refusals: BTreeMap<u32, ServiceRefusals>,
    pub verdicts: BTreeMap<&'static str, Packets>,
    pub maps: BTreeMap<&'static str, MapFill>,
    /// The backends with entries in the connection tables, including recently ended connections. Their ids must not
    /// be reused.
    pub occupied: BTreeSet<u32>,
    /// Why there are no counters: the pins have another layout.
    pub problem: Option<String>,
}

/// How full a map is. LRU maps are often full in normal operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapFill {
    pub entries: u64,
    pub capacity: u64,
}

/// One backend's share. `in` is towards the backend; bytes are those of whole frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackendTraffic {
    /// Open connections, as the programs count them.
    pub flows: u64,
    /// Handshakes begun and not completed yet.
    pub half_open: u64,
    /// Connections begun since the maps were created.
    pub connections: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Most connections in mode `nat`; 0 in other modes.
    pub nat_ports: u64,
    /// SYNs that clients repeated because no reply of the backend had passed.
    pub unanswered: u64,
    /// Handshakes that the backend answered.
    pub answered: u64,
    /// Handshakes that the backend answered with RST, or with the ICMP error "port unreachable".
    pub refused: u64,
    /// Refused handshakes whose SYN went to another backend instead.
    pub retried: u64,
    /// Handshakes that ended without an answer.
    pub expired: u64,
    /// Answered connections that the backend ended with RST.
    pub resets: u64,
    /// Time of the backend's last packet, to about a second, in nanoseconds of CLOCK_MONOTONIC; 0: never.
    pub last_answer_ns: u64,
    /// Milliseconds since then; absent: never.
    pub last_answer_ms: Option<u64>,
}

impl From<Traffic> for BackendTraffic {
    fn from(counted: Traffic) -> Self {
        Self {
            connections: counted.connections,
            packets_in: counted.packets_in,
            bytes_in: counted.bytes_in,
            packets_out: counted.packets_out,
            bytes_out: counted.bytes_out,
            unanswered: counted.unanswered,
            answered: counted.answered,
            refused: counted.refused,
            retried: counted.retried,
            expired: counted.expired,
            resets: counted.resets,
            last_answer_ns: counted.last_answer_ns,
            ..Self::default()
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Packets {
    pub packets: u64,
    pub bytes: u64,
}

impl Stats {
    /// Reads the maps pinned in `pin_path`.
    pub fn read(pin_path: &Path) -> Result<Self> {
        let mut stats = Self::read_totals(pin_path)?;
        let clock = FlowClock::read(pin_path)?;
        stats.read_family::<V4>(pin_path, &clock)?;
        stats.read_family::<V6>(pin_path, &clock)?;
        Ok(stats)
    }

    /// Reads the maps for display. With pins of another layout, there are no counters, and `problem` has the reason.
    pub fn read_for_display(pin_path: &Path) -> Result<Self> {
        match Self::read(pin_path) {
            Err(error) if error.is::<LayoutError>() => Ok(Self {
                problem: Some(format!("{error:#}")),
                ..Self::default()
            }),
            result => result,
        }
    }

    /// Reads only the counters, which is cheap at any number of flows.
    pub fn read_totals(pin_path: &Path) -> Result<Self> {
        let mut stats = Self::default();
        let verdicts = PerCpuMap::<Counter>::open(pin_path, name::VERDICTS)?;
        for verdict in Verdict::ALL {
            let mut sum = Packets::default();
            for Counter { packets, bytes } in verdicts.get(verdict as u32)?.iter() {
                sum.packets += packets;
                sum.bytes += bytes;
            }
            stats.verdicts.insert(verdict.name(), sum);
        }
        let refusals = PerCpuMap::<ServiceRefusals>::open(pin_path, name::SERVICE_REFUSALS)?;
        for id in 0..refusals.len() {
            let sum = ServiceRefusals::sum(refusals.get(id)?.iter());
            if sum != ServiceRefusals::default() {
                stats.refusals.insert(id, sum);
            }
        }
        let traffic = PerCpuMap::<Traffic>::open(pin_path, name::TRAFFIC)?;
        let active = ArrayMap::<u64>::open(pin_path, name::ACTIVE)?;
        let evicted = ArrayMap::<u64>::open(pin_path, name::EVICTED)?;
        let settings = settings(pin_path)?;
        let backends = ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?;
        let now_ns = monotonic_ns()?;
        for id in 1..traffic.len() {
            let traffic = Traffic::sum(traffic.get(id)?.iter());
            let last_answer_ns = traffic.last_answer_ns;
            let sum = BackendTraffic {
                last_answer_ms: (last_answer_ns > 0)
                    .then(|| now_ns.saturating_sub(last_answer_ns) / 1_000_000),
                flows: active.get(id)?.saturating_sub(evicted.get(id)?),
                nat_ports: nat_ports(&settings, &backends.get(id)?),
                ..traffic.into()
            };
            if sum != BackendTraffic::default() {
                stats.backends.insert(id, sum);
            }
        }
        Ok(stats)
    }

    /// Reads fill and backends of a family's connection tables. Omits entries that are removed during the read.
    fn read_family<A: Family>(&mut self, pin_path: &Path, clock: &FlowClock) -> Result<()> {
        let half_open = ArrayMap::<Handshake<A>>::open(pin_path, A::HALF_OPEN)?;
        if !is_allocated(half_open.len()) {
            return Ok(());
        }
        let capacity = open_map(pin_path, A::FLOWS)?
            .info()
            .with_context(|| format!("read the capacity of map {}", A::FLOWS))?;
        let entries = read_flows::<A>(pin_path)?;
        let fill = MapFill {
            entries: entries.len() as u64,
            capacity: capacity.max_entries().into(),
        };
        self.maps.insert(A::FLOWS, fill);
        for (key, flow, reverse) in requests(&entries) {
            let is_free =
                is_over(key, flow, reverse) && clock.has_closed(clock.idle_ns(flow, reverse));
            if !is_free && !clock.has_timed_out(key, flow, reverse) {
                self.occupied.insert(flow.backend);
            }
        }

        let handshakes = half_open.iter().filter_map(Result::ok);
        let present = handshakes
            .filter(|it| self.add_handshake(it, clock))
            .count();
        let fill = MapFill {
            entries: present as u64,
            capacity: half_open.len().into(),
        };
        self.maps.insert(A::HALF_OPEN, fill);
        Ok(())
    }

    /// Adds a handshake to its backend; returns whether it counts as half open. In mode `dsr`, one that is acknowledged
    /// may be an idle connection, which keeps its backend occupied for longer.
    fn add_handshake<A: Family>(&mut self, handshake: &Handshake<A>, clock: &FlowClock) -> bool {
        if !handshake.is_valid() || !clock.is_pending(handshake) {
            return false;
        }
        self.occupied.insert(handshake.backend);
        let idle_ns = clock.now_ns.saturating_sub(handshake.syn_ns);
        let is_half_open = idle_ns <= clock.settings.half_open_idle_ns;
        if is_half_open {
            let backend = self.backends.entry(handshake.backend).or_default();
            backend.half_open += 1;
        }
        is_half_open
    }
}

/// Most connections of a backend in mode `nat`; 0 in other modes.
fn nat_ports(settings: &Settings, backend: &Backend) -> u64 {
    if backend.port == 0 || backend.mode != mode::NAT {
        return 0;
    }
    let is_ipv4 = from_mapped(backend.address).is_ipv4();
    nat_port_count(
        settings.nat_port_count.into(),
        settings.nat_sources,
        is_ipv4,
    )
}

#[cfg(test)]
mod tests {
    use lb_common::maps::progress;

    use super::*;

    #[test]
    fn idle_connection_of_mode_dsr_whose_handshake_was_acknowledged_occupies_its_backend() {
        let clock = FlowClock {
            now_ns: 100_000_000_000,
            settings: Settings {
                half_open_idle_ns: 30_000_000_000,
                established_idle_ns: 3_600_000_000_000,
                ..Settings::default()
            },
        };
        let handshake = |backend, age_s: u64, progress| {
            let mut handshake = Handshake::<V4> {
                backend,
                syn_ns: clock.now_ns - age_s * 1_000_000_000,
                progress,
                ..Handshake::FREE
            };
            handshake.integrity_tag = handshake.compute_integrity_tag();
            handshake
        };
        let mut stats = Stats::default();
        let half_open = [
            handshake(1, 29, progress::NONE),
            handshake(2, 31, progress::NONE),
            handshake(3, 31, progress::CLIENT),
        ]
        .map(|it| stats.add_handshake(&it, &clock));
        assert_eq!(half_open, [true, false, false]);
        assert_eq!(stats.occupied, BTreeSet::from([1, 3]));
        assert_eq!(stats.backends.len(), 1);
    }
}
