//! The connections that peers carry. If a peer omits a connection from three refreshes, it is removed, unless its
//! packets pass this manager.

use std::collections::{HashMap, hash_map::Entry};

use lb_common::maps::{FlowRecord, record_kind};

/// The most refreshes in a row that may omit a connection.
const MAX_MISSED: u32 = 3;

/// The most connections to track; the kernel evicts unused ones.
const MAX_TRACKED: usize = 1 << 20;

/// Identifies a connection by its client and service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ConnectionKey {
    client: [u8; 16],
    client_port: [u8; 2],
    protocol: u8,
    service: u16,
}

/// The data to remove a connection.
#[derive(Debug, Clone, Copy)]
struct CarriedConnection {
    backend: u32,
    /// The number of the address towards the worker; `None` for the client's own.
    source: Option<u16>,
    source_port: [u8; 2],
    created_ticks: u32,
    /// The peer that carries it, and the last refresh of that peer with the connection.
    peer: u16,
    refresh: u32,
}

/// The connections that peers carry.
#[derive(Debug, Default)]
pub struct CarriedConnections {
    connections: HashMap<ConnectionKey, CarriedConnection>,
    endpoints: Vec<([u8; 16], [u8; 2])>,
    numbers: foldhash::HashMap<([u8; 16], [u8; 2]), u16>,
    /// How many refreshes of each peer are complete.
    refreshes: foldhash::HashMap<u16, u32>,
    epochs: foldhash::HashMap<u16, u64>,
}

impl CarriedConnections {
    /// Begins a session with a peer that started at `epoch`. A peer that has restarted may have lost its tables:
    /// connections that it no longer reports may still be open.
    pub fn begin_session(&mut self, peer: u16, epoch: u64) {
        if self.epochs.insert(peer, epoch) != Some(epoch) {
            self.connections.retain(|_, carried| carried.peer != peer);
        }
    }

    /// Records what a peer has reported, as translated for this manager.
    pub fn record(&mut self, peer: u16, record: &FlowRecord) {
        let Some(key) = self.key(record) else {
            return;
        };
        if record.kind == record_kind::ENDED {
            self.connections.remove(&key);
            return;
        }
        if record.carried == 0 {
            // The peer knows the connection from another manager, for example after it lost its tables. It does not
            // carry the connection, and its refreshes omit it.
            if self
                .connections
                .get(&key)
                .is_some_and(|carried| carried.peer == peer)
            {
                self.connections.remove(&key);
            }
            return;
        }
        // There may be more clients than numbers.
        let source = match record.source == record.client {
            true => None,
            false => match self.number((record.source, [0; 2])) {
                Some(number) => Some(number),
                None => return,
            },
        };
        let carried = CarriedConnection {
            backend: record.backend,
            source,
            source_port: record.source_port,
            created_ticks: record.created_ticks,
            peer,
            refresh: self.refresh(peer),
        };
        let is_full = self.connections.len() >= MAX_TRACKED;
        match self.connections.entry(key) {
            Entry::Occupied(mut present) => drop(present.insert(carried)),
            Entry::Vacant(entry) if !is_full => drop(entry.insert(carried)),
            Entry::Vacant(_) => {}
        }
    }

    /// Ends a refresh of a peer; returns the records that remove connections it has omitted too often.
    pub fn end_refresh(&mut self, peer: u16) -> Vec<FlowRecord> {
        let refresh = self.refresh(peer) + 1;
        self.refreshes.insert(peer, refresh);
        let is_missing = |carried: &CarriedConnection| {
            carried.peer == peer && carried.refresh + MAX_MISSED < refresh
        };
        let missing = self
            .connections
            .extract_if(|_, carried| is_missing(carried));
        let endpoint = |number: u16| self.endpoints[usize::from(number)];
        missing
            .map(|(key, carried)| {
                let (service_address, service_port) = endpoint(key.service);
                FlowRecord {
                    kind: record_kind::FORGOTTEN,
                    client: key.client,
                    client_port: key.client_port,
                    service_address,
                    service_port,
                    protocol: key.protocol,
                    source: carried.source.map_or(key.client, |it| endpoint(it).0),
                    source_port: carried.source_port,
                    backend: carried.backend,
                    created_ticks: carried.created_ticks,
                    last_seen_ticks: carried.created_ticks,
                    ..FlowRecord::default()
                }
            })
            .collect()
    }

    fn refresh(&self, peer: u16) -> u32 {
        self.refreshes.get(&peer).copied().unwrap_or_default()
    }

    fn key(&mut self, record: &FlowRecord) -> Option<ConnectionKey> {
        Some(ConnectionKey {
            client: record.client,
            client_port: record.client_port,
            protocol: record.protocol,
            service: self.number((record.service_address, record.service_port))?,
        })
    }

    fn number(&mut self, endpoint: ([u8; 16], [u8; 2])) -> Option<u16> {
        if let Some(number) = self.numbers.get(&endpoint) {
            return Some(*number);
        }
        let number = u16::try_from(self.endpoints.len()).ok()?;
        self.endpoints.push(endpoint);
        self.numbers.insert(endpoint, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, client: u8, carried: u8) -> FlowRecord {
        FlowRecord {
            kind,
            carried,
            client: [client; 16],
            source: [9; 16],
            backend: 3,
            ..FlowRecord::default()
        }
    }

    #[test]
    fn connection_missing_in_three_refreshes_is_removed() {
        let mut carried = CarriedConnections::default();
        for client in [1, 2, 3] {
            carried.record(0, &record(record_kind::OPENED, client, 1));
        }
        carried.record(0, &record(record_kind::PRESENT, 4, 0));
        // Another peer also knows the connection, but does not carry it.
        carried.record(1, &record(record_kind::PRESENT, 1, 0));
        carried.record(0, &record(record_kind::ENDED, 3, 1));
        for _ in 0..9 {
            assert_eq!(carried.end_refresh(1), []);
        }
        for _ in 0..3 {
            carried.record(0, &record(record_kind::PRESENT, 2, 1));
            assert_eq!(carried.end_refresh(0), []);
        }
        carried.record(0, &record(record_kind::PRESENT, 2, 1));
        let forgotten = carried.end_refresh(0);
        let [
            FlowRecord {
                kind,
                client,
                source,
                backend,
                ..
            },
        ] = forgotten[..]
        else {
            panic!("{forgotten:?}");
        };
        assert_eq!(
            (kind, client, source, backend),
            (record_kind::FORGOTTEN, [1; 16], [9; 16], 3)
        );
        // A peer that has started again may have lost what it carried.
        carried.record(0, &record(record_kind::OPENED, 5, 1));
        carried.record(0, &record(record_kind::OPENED, 6, 1));
        carried.record(0, &record(record_kind::PRESENT, 6, 0));
        carried.begin_session(0, 7);
        carried.record(0, &record(record_kind::OPENED, 7, 1));
        carried.begin_session(0, 7);
        let forgotten: Vec<_> = (0..9).flat_map(|_| carried.end_refresh(0)).collect();
        let clients: Vec<u8> = forgotten.iter().map(|it| it.client[0]).collect();
        assert_eq!(clients, [7]);
        // A peer that is gone has no refreshes, and so its connections stay.
        assert_eq!(carried.end_refresh(1), []);
    }

    #[test]
    fn connections_of_any_number_of_clients_with_their_own_addresses_are_tracked() {
        const CLIENTS: u32 = 70_000;
        let mut carried = CarriedConnections::default();
        for client in 0..CLIENTS {
            let mut address = [0; 16];
            address[12..].copy_from_slice(&client.to_be_bytes());
            let record = FlowRecord {
                kind: record_kind::OPENED,
                carried: 1,
                client: address,
                source: address,
                ..FlowRecord::default()
            };
            carried.record(0, &record);
        }
        let forgotten: Vec<_> = (0..4).flat_map(|_| carried.end_refresh(0)).collect();
        assert_eq!(forgotten.len(), CLIENTS as usize);
        assert!(forgotten.iter().all(|it| it.source == it.client));
    }
}
