//! Reads connections from the pinned flow tables.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use lb_common::{
    address::{V4, V6},
    maps::{Flow, FlowKey, Handshake, Settings, direction, elapsed_ns, ended, progress, ticks},
};
use lb_core::Protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{adopt, clock::monotonic_ns, family::Family, named_map::HashTable};

/// One connection whose handshake is complete, or one exchange of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub backend: u32,
    /// Destination of its packets after translation; `None` in mode `dsr`, where it stays the service's address.
    pub backend_address: Option<SocketAddr>,
    /// The manager's address from which its packets reach the worker; `None` where that is the client's.
    pub nat_source: Option<IpAddr>,
    pub state: ConnectionState,
    pub age: Duration,
    /// Since the last packet in either direction.
    pub idle: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

lb_common::named_enum! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ConnectionState {
        Open = "open",
        /// One side has sent a FIN.
        Closing = "closing",
        /// Both sides have, or one has reset the connection, or it has timed out. The entry remains until it is
        /// replaced or evicted.
        Ended = "ended",
    }
}

/// Reads all connections, the youngest first. Omits entries that are removed during the read.
///
/// # Errors
///
/// Names the map that could not be read.
pub fn read_connections(pin_path: &Path) -> Result<Vec<Connection>> {
    let clock = FlowClock::read(pin_path)?;
    let mut connections = of_family::<V4>(pin_path, &clock)?;
    connections.extend(of_family::<V6>(pin_path, &clock)?);
    connections.sort_by_key(|connection| connection.age);
    Ok(connections)
}

fn of_family<A: Family>(pin_path: &Path, clock: &FlowClock) -> Result<Vec<Connection>> {
    let entries = read_flows::<A>(pin_path)?;
    let connection = |(key, flow, reverse)| connection(key, flow, reverse, clock);
    Ok(requests(&entries).map(connection).collect())
}

/// Reads a family's flow table.
pub(super) fn read_flows<A: Family>(pin_path: &Path) -> Result<BTreeMap<FlowKey<A>, Flow<A>>> {
    let flows = open_flows::<A>(pin_path)?;
    Ok(flows.iter().filter_map(Result::ok).collect())
}

pub(super) type FlowTable<A> = HashTable<FlowKey<A>, Flow<A>>;

/// Opens a family's pinned flow table.
pub(super) fn open_flows<A: Family>(pin_path: &Path) -> Result<FlowTable<A>> {
    HashTable::open(pin_path, A::FLOWS)
}

/// Each connection of a flow table: key and entry of the client's direction, and the reverse entry if present.
pub(super) fn requests<A: Family>(
    entries: &BTreeMap<FlowKey<A>, Flow<A>>,
) -> impl Iterator<Item = (&FlowKey<A>, &Flow<A>, Option<&Flow<A>>)> {
    let requests = entries
        .iter()
        .filter(|(_, flow)| flow.direction == direction::REQUEST && flow.superseded == 0);
    requests.map(|(key, flow)| (key, flow, entries.get(&flow.translated.reversed())))
}

/// An unproven flow's last packet comes at most this long after its first one.
const BRIEF_NS: u64 = 4_000_000_000;
/// An unproven flow is idle for longer than this.
const UNPROVEN_IDLE_NS: u64 = 60_000_000_000;

/// Time and idle limits by which flows are judged.
pub(super) struct FlowClock {
    pub now_ns: u64,
    pub settings: Settings,
}

impl FlowClock {
    pub fn read(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            now_ns: monotonic_ns()?,
            settings: adopt::settings(pin_path)?,
        })
    }

    /// Nanoseconds since the last packet of either direction.
    pub fn idle_ns<A>(&self, flow: &Flow<A>, reverse: Option<&Flow<A>>) -> u64 {
        let idle = |flow: &Flow<A>| elapsed_ns(self.now_ns, flow.last_seen_ticks);
        reverse.map_or(idle(flow), |reverse| idle(flow).min(idle(reverse)))
    }

    /// Whether a flow has timed out, by the rules of the programs: after the worker's FIN, the limit is
    /// `closing_idle`.
    pub fn has_timed_out<A: Family>(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        reverse: Option<&Flow<A>>,
    ) -> bool {
        let is_unseen = flow.translated.is(key);
        let longest = if flow.translated.is_datagram() {
            self.settings.datagram_idle_ns
        } else if !is_unseen && reverse.is_some_and(|reverse| reverse.ended & ended::FIN != 0) {
            self.settings.closing_idle_ns
        } else {
            self.settings.established_idle_ns
        };
        self.idle_ns(flow, reverse) > longest
    }

    /// Whether a flow of mode `dsr` may be spoofed: it was brief, and has been idle since.
    pub fn is_unproven<A: Family>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let lasted = flow.last_seen_ticks.wrapping_sub(flow.created_ticks);
        flow.translated.is(key)
            && lasted < ticks(BRIEF_NS)
            && self.idle_ns(flow, None) > UNPROVEN_IDLE_NS
    }

    /// Whether a handshake has not timed out, by the rules of the programs.
    pub fn is_pending<A: Family>(&self, handshake: &Handshake<A>) -> bool {
        let is_acknowledged =
            handshake.progress != progress::NONE && !handshake.client.is_datagram();
        let longest = match is_acknowledged {
            true => self.settings.established_idle_ns,
            false => self.settings.half_open_idle_ns,
        };
        self.now_ns.saturating_sub(handshake.syn_ns) <= longest
    }

    /// Whether an ended flow with this idle time has no packets in flight.
    pub fn has_closed(&self, idle_ns: u64) -> bool {
        idle_ns > self.settings.closing_idle_ns
    }
}

/// Whether both directions have ended. In mode `dsr`, the worker's end is not seen.
pub(super) fn is_over<A: Family>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    reverse: Option<&Flow<A>>,
) -> bool {
    let reverse_ended = reverse.map_or(0, |reverse| reverse.ended);
    match flow.translated.is(key) {
        true => (flow.ended | reverse_ended & ended::RESET) != 0,
        false => ended::both(flow.ended, reverse_ended),
    }
}

/// State of a flow: open while the programs count it. A closing flow with one evicted entry is not counted again,
/// because the end of that direction is lost.
fn state<A: Family>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    reverse: Option<&Flow<A>>,
    clock: &FlowClock,
) -> ConnectionState {
    if flow.counted == 0 || clock.has_timed_out(key, flow, reverse) {
        return ConnectionState::Ended;
    }
    let unseen = flow.translated.is(key);
    match reverse.map_or(0, |reverse| reverse.ended) {
        other if flow.ended == 0 && (unseen || other == 0) => ConnectionState::Open,
        _ => ConnectionState::Closing,
    }
}

fn connection<A: Family>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    reverse: Option<&Flow<A>>,
    clock: &FlowClock,
) -> Connection {
    let leaves = &flow.translated;
    Connection {
        protocol: match key.is_datagram() {
            true => Protocol::Udp,
            false => Protocol::Tcp,
        },
        client: address(key.source, key.source_port),
        service: address(key.destination, key.destination_port),
        backend: flow.backend,
        backend_address: (!leaves.is(key))
            .then(|| address(leaves.destination, leaves.destination_port)),
        nat_source: (leaves.source != key.source).then(|| leaves.source.ip()),
        state: state(key, flow, reverse, clock),
        age: Duration::from_nanos(elapsed_ns(clock.now_ns, flow.created_ticks)),
        idle: Duration::from_nanos(clock.idle_ns(flow, reverse)),
        bytes_in: flow.bytes,
        bytes_out: reverse.map_or(0, |reverse| reverse.bytes),
    }
}

fn address<A: Family>(address: A, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.ip(), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use lb_common::{
        headers::{PROTOCOL_TCP, PROTOCOL_UDP},
        maps::{Mac, ticks},
    };

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn clock() -> FlowClock {
        FlowClock {
            now_ns: 1_000 * SECOND,
            settings: Settings {
                established_idle_ns: 3_600 * SECOND,
                datagram_idle_ns: 60 * SECOND,
                closing_idle_ns: 10 * SECOND,
                ..Settings::default()
            },
        }
    }

    fn key(protocol: u8, source: V6, destination: V6, port: u16) -> FlowKey<V6> {
        FlowKey {
            source,
            destination,
            source_port: 4711_u16.to_be_bytes(),
            destination_port: port.to_be_bytes(),
            protocol: protocol.into(),
        }
    }

    fn flow(leaves: FlowKey<V6>, seen_s: u64, ended: u8, direction: u8) -> Flow<V6> {
        Flow {
            translated: leaves,
            client_mac: Mac::default(),
            manager_mac: Mac::default(),
            backend: 1,
            client_interface: 2,
            direction,
            ended,
            counted: (direction == direction::REQUEST).into(),
            superseded: 0,
            created_ticks: ticks(900 * SECOND),
            last_seen_ticks: ticks(seen_s * SECOND),
            sequence: 0,
            bytes: 300,
        }
    }

    fn v6(last: u8) -> V6 {
        std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).octets()
    }

    #[test]
    fn shows_an_ipv6_connection_with_both_its_entries() {
        let arrives = key(PROTOCOL_TCP, v6(10), v6(1), 80);
        let leaves = key(PROTOCOL_TCP, v6(1), v6(3), 8081);
        let entries = BTreeMap::from([
            (arrives, flow(leaves, 990, ended::FIN, direction::REQUEST)),
            (
                leaves.reversed(),
                flow(arrives.reversed(), 995, 0, direction::REPLY),
            ),
        ]);
        let found: Vec<_> = requests(&entries).collect();
        let [(key, request, reverse)] = found[..] else {
            panic!("one connection: {found:?}");
        };
        let connection = connection(key, request, reverse, &clock());
        assert_eq!(connection.protocol, Protocol::Tcp);
        assert_eq!(connection.client.to_string(), "[2001:db8::a]:4711");
        assert_eq!(connection.service.to_string(), "[2001:db8::1]:80");
        let backend = connection.backend_address.map(|it| it.to_string());
        assert_eq!(backend.as_deref(), Some("[2001:db8::3]:8081"));
        assert_eq!(connection.state, ConnectionState::Closing);
        assert_eq!(connection.idle.as_secs_f32().round(), 5.0);
        assert_eq!(connection.bytes_out, 300);
    }

    #[test]
    fn connection_idle_for_too_long_is_not_listed() {
        let arrives = key(PROTOCOL_UDP, v6(10), v6(1), 53);
        let leaves = key(PROTOCOL_UDP, v6(1), v6(3), 53);
        let reply = flow(arrives.reversed(), 950, 0, direction::REPLY);
        let late = flow(leaves, 930, 0, direction::REQUEST);
        let state = |reverse| connection(&arrives, &late, reverse, &clock()).state;
        assert_eq!(state(Some(&reply)), ConnectionState::Open);
        assert_eq!(state(None), ConnectionState::Ended);
        let tcp = key(PROTOCOL_TCP, v6(1), v6(3), 53);
        let rests = flow(tcp, 930, 0, direction::REQUEST);
        assert!(!clock().has_timed_out(&tcp, &rests, None));
    }

    #[test]
    fn connection_closed_by_the_worker_ends_after_closing_idle() {
        let arrives = key(PROTOCOL_TCP, v6(10), v6(1), 80);
        let leaves = key(PROTOCOL_TCP, v6(1), v6(3), 8081);
        let ended = |seen_s| flow(arrives.reversed(), seen_s, ended::FIN, direction::REPLY);
        let request = flow(leaves, 900, 0, direction::REQUEST);
        let has_timed_out = |reverse| clock().has_timed_out(&arrives, &request, Some(&reverse));
        assert_eq!([ended(989), ended(991)].map(has_timed_out), [true, false]);
        // Where a worker answers past the manager, its end is never seen.
        let direct = flow(arrives, 900, 0, direction::REQUEST);
        assert!(!clock().has_timed_out(&arrives, &direct, Some(&ended(900))));
    }

    #[test]
    fn a_connection_is_open_as_long_as_the_programs_count_it() {
        let arrives = key(PROTOCOL_TCP, v6(10), v6(1), 80);
        let leaves = key(PROTOCOL_TCP, v6(1), v6(3), 8081);
        let reply = flow(arrives.reversed(), 990, ended::FIN, direction::REPLY);
        let mut request = flow(leaves, 990, 0, direction::REQUEST);
        let state =
            |request: &Flow<V6>| connection(&arrives, request, Some(&reply), &clock()).state;
        assert_eq!(state(&request), ConnectionState::Closing);
        // Its entry was evicted with the client's end, and restored without it.
        request.counted = 0;
        assert_eq!(state(&request), ConnectionState::Ended);
        assert!(!is_over(&arrives, &request, Some(&reply)));
    }

    #[test]
    fn dsr_connection_ends_by_client_packets_alone() {
        let arrives = key(PROTOCOL_TCP, v6(10), v6(1), 80);
        let unseen = flow(arrives.reversed(), 990, ended::FIN, direction::REPLY);
        let request = |ended| flow(arrives, 990, ended, direction::REQUEST);
        let open = connection(&arrives, &request(0), Some(&unseen), &clock());
        assert_eq!(open.state, ConnectionState::Open);
        assert_eq!(open.backend_address, None);
        let over = |ended| is_over(&arrives, &request(ended), Some(&unseen));
        assert_eq!([0, ended::FIN, ended::RESET].map(over), [false, true, true]);
    }
}
