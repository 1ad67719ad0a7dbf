//! Packets of connections that this manager does not know. A peer or, in mode `dsr`, a worker may know them.

use super::{Decision, Exit, Hook, PacketMeta, Tables};
use crate::{
    address::{Address, V6},
    maps::{
        FlowKey, FlowRecord, LOOKUP_AGAIN_NS, LOOKUP_NS, Mac, ServiceKey, UnknownFlow, record_kind,
        service_flag, ticks,
    },
    verdict::Verdict,
};

/// Whether a peer sent the frame. Then its link addresses are neither the client's nor the worker's.
#[inline(always)]
pub(super) fn is_from_peer<T: Tables>(tables: &T, packet: &PacketMeta) -> bool {
    packet.hook == Hook::Ingress
        && packet.source_mac.is_station()
        && tables.is_peer(packet.interface, &packet.source_mac)
}

/// Whether a link address on the network of an interface is a peer's.
#[inline(always)]
pub fn is_peer<T: Tables>(tables: &T, interface: u32, mac: &Mac) -> bool {
    let mut is_known = false;
    if tables.peer_switch().interfaces != 0
        && let Some(peers) = tables.peers(interface)
    {
        for link in &peers.links {
            is_known |= link.mac.is_same_station(*mac);
        }
    }
    is_known
}

/// Decides on a packet of an unknown connection; `otherwise` is the verdict if neither peers nor agents may know it.
///
/// For [`LOOKUP_NS`], the packets go to the peers unchanged or, while agents are queried, are dropped; for longer while
/// a peer is incomplete. A peer does not relay them again.
#[inline(never)]
pub(super) fn unknown<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    otherwise: Verdict,
    decision: &mut Decision<T::Address>,
) -> Verdict {
    let has_peers = tables.peer_switch().interfaces != 0;
    if packet.hook != Hook::Ingress
        || packet.flags.is_syn()
        || !has_peers && otherwise != Verdict::NoFlow
    {
        return otherwise;
    }
    let service = tables.service(&ServiceKey {
        address: key.destination.mapped(),
        port: key.destination_port,
        protocol: key.protocol as u8,
        reserved: 0,
    });
    let flags = service.map_or(0, |service| service.flags);
    let queries_agents = flags & service_flag::QUERY_AGENTS != 0
        && otherwise == Verdict::NoFlow
        && !packet.flags.has_rst();
    let is_ours = service.is_some() || is_nat_port(tables, key);
    if !(has_peers || queries_agents) || !is_ours {
        return otherwise;
    }
    if is_from_peer(tables, packet) {
        decision.exit = Exit::Drop;
        return Verdict::UnknownToPeer;
    }
    // Only TC can copy packets.
    if packet.in_driver {
        return Verdict::HandedOver;
    }
    if !continue_lookup(tables, packet, key, queries_agents) {
        return otherwise;
    }
    decision.exit = if has_peers { Exit::Peers } else { Exit::Drop };
    if has_peers {
        Verdict::ToPeer
    } else {
        Verdict::LookupPending
    }
}

/// Whether the packet's destination is a NAT port at a NAT address of this manager or of a peer.
#[inline(always)]
fn is_nat_port<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let port = u16::from_be_bytes(key.destination_port);
    port.wrapping_sub(settings.nat_port_first) < settings.nat_port_count
        && tables.is_peer_address(&key.destination.mapped())
}

/// Begins or continues the lookup of an unknown connection. Reports the client to the manager if it must query the
/// agents. Returns whether a reply may still come.
#[inline(never)]
fn continue_lookup<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    queries_agents: bool,
) -> bool {
    let now = tables.now_ns();
    let tuple: FlowKey<V6> = FlowKey {
        source: key.source.mapped(),
        destination: key.destination.mapped(),
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol,
    };
    let fresh = UnknownFlow {
        first_ns: now,
        ..UnknownFlow::default()
    };
    let mut lookup = match tables.unknown_flow(&tuple) {
        Some(lookup) if now.saturating_sub(lookup.first_ns) < LOOKUP_AGAIN_NS => lookup,
        _ => fresh,
    };
    if now.saturating_sub(lookup.first_ns) >= LOOKUP_NS {
        return tables.peer_switch().incomplete != 0;
    }
    let is_reported =
        queries_agents && lookup.reported == 0 && report_unknown(tables, packet, key, now);
    if is_reported || lookup.first_ns == now {
        lookup.reported |= u32::from(is_reported);
        tables.set_unknown_flow(&tuple, &lookup);
    }
    true
}

/// Reports an unknown client to the manager. Returns whether there was room.
#[inline(always)]
fn report_unknown<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    now: u64,
) -> bool {
    let Some(mut scratch) = tables.flow_scratch() else {
        return false;
    };
    let record = &mut scratch.record;
    *record = FlowRecord::NONE;
    record.set_client(key);
    record.kind = record_kind::UNKNOWN_CLIENT;
    record.client_mac = packet.source_mac;
    record.manager_mac = packet.destination_mac;
    record.client_interface = packet.interface;
    record.created_ticks = ticks(now);
    record.last_seen_ticks = ticks(now);
    record.sequences = [packet.sequence, packet.acknowledgement];
    tables.report_unknown(record)
}
