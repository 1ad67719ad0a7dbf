//! Flows and handshakes of both families in one form, with IPv4-mapped addresses.

use std::{collections::BTreeMap, net::Ipv6Addr};

use aya::maps::{Array, HashMap, MapData};
use lb_common::{
    address::{Address, V4, V6},
    maps::{Flow, FlowKey, Handshake},
};

use crate::{entries, frame::Family};

pub type Key = FlowKey<V6>;
pub type Entry = Flow<V6>;
pub type Opening = Handshake<V6>;

pub struct Flows {
    pub v4: HashMap<MapData, FlowKey, Flow>,
    pub v6: HashMap<MapData, Key, Entry>,
}

pub struct Handshakes {
    pub v4: Array<MapData, Handshake>,
    pub v6: Array<MapData, Opening>,
}

/// Where a handshake is.
#[derive(Clone, Copy, Debug)]
pub struct SlotIndex(Family, u32);

impl Flows {
    pub fn entries(&self) -> BTreeMap<Key, Entry> {
        let mut entries: BTreeMap<_, _> = self.v6.iter().map(Result::unwrap).collect();
        for (at, value) in self.v4.iter().map(Result::unwrap) {
            entries.insert(key(&at), flow(&value));
        }
        entries
    }

    pub fn put(&mut self, at: Key, value: &Entry) {
        if is_v4(&at) {
            self.v4.insert(key::<V6, V4>(&at), flow(value), 0).unwrap();
        } else {
            self.v6.insert(at, value, 0).unwrap();
        }
    }

    pub fn remove(&mut self, at: Key) {
        if is_v4(&at) {
            self.v4.remove(&key(&at)).unwrap();
        } else {
            self.v6.remove(&at).unwrap();
        }
    }

    pub fn clear(&mut self) {
        for at in self.entries().into_keys() {
            self.remove(at);
        }
    }
}

impl Handshakes {
    pub fn places(&self) -> Vec<(SlotIndex, Opening)> {
        let mut places = whole(&self.v4, Family::V4);
        places.extend(whole(&self.v6, Family::V6));
        places
    }

    pub fn put(&mut self, SlotIndex(family, index): SlotIndex, value: &Opening) {
        match family {
            Family::V4 => self.v4.set(index, handshake::<V6, V4>(value), 0).unwrap(),
            Family::V6 => self.v6.set(index, value, 0).unwrap(),
        }
    }
}

fn whole<A: Address>(
    table: &Array<MapData, Handshake<A>>,
    family: Family,
) -> Vec<(SlotIndex, Opening)> {
    (0..)
        .zip(entries::of(table))
        .filter(|(_, it)| it.is_valid())
        .map(|(index, it)| (SlotIndex(family, index), handshake(&it)))
        .collect()
}

fn is_v4(key: &Key) -> bool {
    Ipv6Addr::from(key.source).to_ipv4_mapped().is_some()
}

fn key<A: Address, B: Address>(key: &FlowKey<A>) -> FlowKey<B> {
    FlowKey {
        source: B::from_mapped(&key.source.mapped()),
        destination: B::from_mapped(&key.destination.mapped()),
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol,
    }
}

fn flow<A: Address, B: Address>(flow: &Flow<A>) -> Flow<B> {
    Flow {
        translated: key(&flow.translated),
        client_mac: flow.client_mac,
        manager_mac: flow.manager_mac,
        backend: flow.backend,
        client_interface: flow.client_interface,
        direction: flow.direction,
        ended: flow.ended,
        counted: flow.counted,
        superseded: flow.superseded,
        created_ticks: flow.created_ticks,
        last_seen_ticks: flow.last_seen_ticks,
        sequence: flow.sequence,
        bytes: flow.bytes,
    }
}

fn handshake<A: Address, B: Address>(handshake: &Handshake<A>) -> Handshake<B> {
    Handshake {
        client: key(&handshake.client),
        translated: key(&handshake.translated),
        client_mac: handshake.client_mac,
        manager_mac: handshake.manager_mac,
        backend: handshake.backend,
        service: handshake.service,
        client_interface: handshake.client_interface,
        client_sequence: handshake.client_sequence,
        integrity_tag: handshake.integrity_tag,
        created_ns: handshake.created_ns,
        syn_ns: handshake.syn_ns,
        worker_sequence: handshake.worker_sequence,
        answered: handshake.answered,
        ended: handshake.ended,
        retries: handshake.retries,
        completed: handshake.completed,
        progress: handshake.progress,
        keeps_syn: handshake.keeps_syn,
        reserved: handshake.reserved,
        refused_by: handshake.refused_by,
        bytes_in: handshake.bytes_in,
        bytes_out: handshake.bytes_out,
    }
}
