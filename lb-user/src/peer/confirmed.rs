//! Which connections peers still speak of. One that its peer leaves out of three refreshes is forgotten, unless its
//! packets pass this manager.

use std::collections::{HashMap, hash_map::Entry};

use lb_common::maps::{FlowRecord, record_kind};

use super::fast_hash::FastMap;

/// In how many refreshes a connection may be missing.
const MISSED: u32 = 3;

/// More connections than this are not watched; the kernel evicts those that nothing uses.
const MOST: usize = 1 << 20;

/// A client's tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tuple {
    client: [u8; 16],
    client_port: [u8; 2],
    protocol: u8,
    service: u16,
}

/// What is needed to forget a connection.
#[derive(Debug, Clone, Copy)]
struct Mark {
    backend: u32,
    source: u16,
    source_port: [u8; 2],
    created_ticks: u32,
    /// The peer that carries it, and its refresh in which it spoke of the connection.
    peer: u16,
    round: u32,
}

/// The connections that peers carry.
#[derive(Debug, Default)]
pub struct Confirmed {
    marks: HashMap<Tuple, Mark>,
    endpoints: Vec<([u8; 16], [u8; 2])>,
    numbers: FastMap<([u8; 16], [u8; 2]), u16>,
    /// How many refreshes of each peer are complete.
    rounds: FastMap<u16, u32>,
    epochs: FastMap<u16, u64>,
}

impl Confirmed {
    /// Notes that a session with a peer begins, which started at `epoch`. One that has started again may have lost its
    /// tables: what it does not speak of any more may still be open.
    pub fn begin(&mut self, peer: u16, epoch: u64) {
        if self.epochs.insert(peer, epoch) != Some(epoch) {
            self.marks.retain(|_, mark| mark.peer != peer);
        }
    }

    /// Notes what a peer said, as translated for this manager.
    pub fn note(&mut self, peer: u16, record: &FlowRecord) {
        let Some(tuple) = self.tuple(record) else {
            return;
        };
        if record.kind == record_kind::ENDED {
            self.marks.remove(&tuple);
            return;
        }
        if record.carried == 0 {
            // A manager that only knows of the connection is no proof that it is still there, and will not speak of it
            // again: after a loss of its tables, it has it from another manager.
            if self.marks.get(&tuple).is_some_and(|mark| mark.peer == peer) {
                self.marks.remove(&tuple);
            }
            return;
        }
        let Some(source) = self.number((record.source, [0; 2])) else {
            return;
        };
        let mark = Mark {
            backend: record.backend,
            source,
            source_port: record.source_port,
            created_ticks: record.created_ticks,
            peer,
            round: self.round(peer),
        };
        let is_full = self.marks.len() >= MOST;
        match self.marks.entry(tuple) {
            Entry::Occupied(mut present) => drop(present.insert(mark)),
            Entry::Vacant(place) if !is_full => drop(place.insert(mark)),
            Entry::Vacant(_) => {}
        }
    }

    /// Notes that a peer has spoken of all that it carries; returns what it has left out too often.
    pub fn finish(&mut self, peer: u16) -> Vec<FlowRecord> {
        let round = self.round(peer) + 1;
        self.rounds.insert(peer, round);
        let is_missing = |mark: &Mark| mark.peer == peer && mark.round + MISSED < round;
        let missing = self.marks.extract_if(|_, mark| is_missing(mark));
        let endpoint = |number: u16| self.endpoints[usize::from(number)];
        missing
            .map(|(tuple, mark)| {
                let (service_address, service_port) = endpoint(tuple.service);
                FlowRecord {
                    kind: record_kind::FORGOTTEN,
                    client: tuple.client,
                    client_port: tuple.client_port,
                    service_address,
                    service_port,
                    protocol: tuple.protocol,
                    source: endpoint(mark.source).0,
                    source_port: mark.source_port,
                    backend: mark.backend,
                    created_ticks: mark.created_ticks,
                    last_seen_ticks: mark.created_ticks,
                    ..FlowRecord::default()
                }
            })
            .collect()
    }

    fn round(&self, peer: u16) -> u32 {
        self.rounds.get(&peer).copied().unwrap_or_default()
    }

    fn tuple(&mut self, record: &FlowRecord) -> Option<Tuple> {
        Some(Tuple {
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
    fn forgets_what_its_peer_left_out_of_three_refreshes() {
        let mut confirmed = Confirmed::default();
        for client in [1, 2, 3] {
            confirmed.note(0, &record(record_kind::OPENED, client, 1));
        }
        confirmed.note(0, &record(record_kind::PRESENT, 4, 0));
        // Another peer knows of it, too, but does not carry it.
        confirmed.note(1, &record(record_kind::PRESENT, 1, 0));
        confirmed.note(0, &record(record_kind::ENDED, 3, 1));
        for _ in 0..9 {
            assert_eq!(confirmed.finish(1), []);
        }
        for _ in 0..3 {
            confirmed.note(0, &record(record_kind::PRESENT, 2, 1));
            assert_eq!(confirmed.finish(0), []);
        }
        confirmed.note(0, &record(record_kind::PRESENT, 2, 1));
        let forgotten = confirmed.finish(0);
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
        confirmed.note(0, &record(record_kind::OPENED, 5, 1));
        confirmed.note(0, &record(record_kind::OPENED, 6, 1));
        confirmed.note(0, &record(record_kind::PRESENT, 6, 0));
        confirmed.begin(0, 7);
        confirmed.note(0, &record(record_kind::OPENED, 7, 1));
        confirmed.begin(0, 7);
        let forgotten: Vec<_> = (0..9).flat_map(|_| confirmed.finish(0)).collect();
        let clients: Vec<u8> = forgotten.iter().map(|it| it.client[0]).collect();
        assert_eq!(clients, [7]);
        // A peer that is gone has no refreshes, and so its connections stay.
        assert_eq!(confirmed.finish(1), []);
    }
}
