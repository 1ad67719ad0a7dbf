//! Packets of connections that are not known here. A peer may know them, or, in mode `dsr`, a worker.

use super::{Decision, Exit, Hook, PacketMeta, Tables};
use crate::{
    address::{Address, V6},
    maps::{
        ASKED_AGAIN_NS, ASKED_NS, Asked, FlowKey, FlowRecord, Mac, ServiceKey, record_kind,
        service_flag, ticks,
    },
    verdict::Verdict,
};

/// Whether the frame comes from a peer. Its link addresses say nothing of the client or the worker.
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

/// Decides on a packet that belongs to nothing known here; `otherwise` is the verdict if no one is asked.
///
/// For [`ASKED_NS`], packets of a connection go to the peers as they are, or wait for an agent's answer; for longer
/// while a peer is incomplete. They go no further than one peer, and never back.
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
    let asks =
        flags & service_flag::ASKS != 0 && otherwise == Verdict::NoFlow && !packet.flags.has_rst();
    let is_ours = service.is_some() || is_nat_port(tables, key);
    if !(has_peers || asks) || !is_ours {
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
    if !ask(tables, packet, key, asks) {
        return otherwise;
    }
    decision.exit = if has_peers { Exit::Peers } else { Exit::Drop };
    if has_peers {
        Verdict::ToPeer
    } else {
        Verdict::Asked
    }
}

/// Whether the packet is for a NAT port of a manager, which no server and no client of its own uses.
#[inline(always)]
fn is_nat_port<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let port = u16::from_be_bytes(key.destination_port);
    port.wrapping_sub(settings.nat_port_first) < settings.nat_port_count
        && tables.is_peer_address(&key.destination.mapped())
}

/// Notes that the connection is asked about, and reports the client to the manager if `agents` are to be asked.
/// Returns whether an answer may still come.
#[inline(never)]
fn ask<T: Tables>(
    tables: &T,
    packet: &PacketMeta,
    key: &FlowKey<T::Address>,
    agents: bool,
) -> bool {
    let now = tables.now_ns();
    let tuple: FlowKey<V6> = FlowKey {
        source: key.source.mapped(),
        destination: key.destination.mapped(),
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol,
    };
    let fresh = Asked {
        first_ns: now,
        ..Asked::default()
    };
    let mut asked = match tables.asked(&tuple) {
        Some(asked) if now.saturating_sub(asked.first_ns) < ASKED_AGAIN_NS => asked,
        _ => fresh,
    };
    if now.saturating_sub(asked.first_ns) >= ASKED_NS {
        return tables.peer_switch().incomplete != 0;
    }
    let is_reported = agents && asked.reported == 0 && report_unknown(tables, packet, key, now);
    if is_reported || asked.first_ns == now {
        asked.reported |= u32::from(is_reported);
        tables.set_asked(&tuple, &asked);
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
    record.kind = record_kind::ASKED;
    record.client_mac = packet.source_mac;
    record.manager_mac = packet.destination_mac;
    record.client_interface = packet.interface;
    record.created_ticks = ticks(now);
    record.last_seen_ticks = ticks(now);
    record.sequences = [packet.sequence, packet.acknowledgement];
    tables.report_unknown(record)
}
