//! Reads all connections in chunks.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use lb_common::{
    address::{V4, V6},
    maps::{
        Backend, Flow, FlowEvent, FlowKey, FlowRecord, LOOPBACK, direction, ended, mode, name,
        record_kind,
    },
};

use crate::datapath::{
    family::Family,
    flows::{FlowClock, FlowTable, open_flows},
    layout::open_map,
    map_batch::lookup_batch,
    named_map::ArrayMap,
};

/// Reads all connections of the flow tables as records of kind `PRESENT`, in chunks.
#[derive(Debug)]
pub struct FlowScan {
    pin_path: PathBuf,
    v4: FamilyScan<V4>,
    v6: FamilyScan<V6>,
    /// Backends that peers may have, too: workers, not fallbacks.
    workers: BTreeSet<u32>,
    position: Position,
}

/// Where the next chunk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Start,
    V4(Option<u32>),
    V6(Option<u32>),
    End,
}

impl FlowScan {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            pin_path: pin_path.to_owned(),
            v4: FamilyScan::open(pin_path)?,
            v6: FamilyScan::open(pin_path)?,
            workers: BTreeSet::new(),
            position: Position::Start,
        })
    }

    /// Makes the next chunk the first one.
    pub fn restart(&mut self) {
        self.position = Position::Start;
    }

    /// Reads about `limit` entries, and appends the open connections among them. Returns whether there are more. Omits
    /// connections to the manager's own server, connections from clients on the manager, and those that have timed out.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    pub fn next_chunk(&mut self, limit: usize, into: &mut Vec<FlowRecord>) -> Result<bool> {
        let clock = FlowClock::read(&self.pin_path)?;
        if self.position == Position::Start {
            self.workers = workers(&self.pin_path)?;
            self.position = Position::V4(None);
        }
        let workers = &self.workers;
        self.position = match self.position {
            Position::V4(from) => match self.v4.read(from, limit, workers, &clock, into)? {
                None => Position::V6(None),
                next => Position::V4(next),
            },
            Position::V6(from) => match self.v6.read(from, limit, workers, &clock, into)? {
                None => Position::End,
                next => Position::V6(next),
            },
            end => end,
        };
        Ok(self.position != Position::End)
    }
}

fn workers(pin_path: &Path) -> Result<BTreeSet<u32>> {
    let backends = ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?;
    let mut workers = BTreeSet::new();
    for (id, backend) in (0..).zip(backends.values()) {
        let backend = backend?;
        if backend.port != 0 && backend.mode != mode::LOCAL {
            workers.insert(id);
        }
    }
    Ok(workers)
}

/// Reads the flow table of a family.
#[derive(Debug)]
struct FamilyScan<A: Family> {
    data: MapData,
    flows: FlowTable<A>,
    keys: Vec<FlowKey<A>>,
    values: Vec<Flow<A>>,
}

impl<A: Family> FamilyScan<A> {
    fn open(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            data: open_map(pin_path, A::FLOWS)?,
            flows: open_flows(pin_path)?,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Appends the open connections of the entries from a position on. Returns the next position; `None` at the end.
    fn read(
        &mut self,
        from: Option<u32>,
        limit: usize,
        workers: &BTreeSet<u32>,
        clock: &FlowClock,
        into: &mut Vec<FlowRecord>,
    ) -> Result<Option<u32>> {
        let (keys, values) = (&mut self.keys, &mut self.values);
        // SAFETY: `open_map` has checked the sizes of the flow table's keys and values.
        let next = unsafe { lookup_batch(&self.data, from, limit.max(1), 1, keys, values) };
        let next = next.with_context(|| format!("read map {}", A::FLOWS))?;
        for (key, flow) in self.keys.iter().zip(&self.values) {
            if flow.direction == direction::REQUEST
                && (flow.counted, flow.superseded) == (1, 0)
                && flow.client_interface != LOOPBACK
                && workers.contains(&flow.backend)
            {
                let reply = self.flows.get(&flow.translated.reversed());
                let reply = reply.filter(|it| it.translated.reversed() == *key);
                into.extend(present(key, flow, reply.as_ref(), clock));
            }
        }
        Ok(next)
    }
}

/// The record of a connection; `None` if it is not open.
fn present<A: Family>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    reply: Option<&Flow<A>>,
    clock: &FlowClock,
) -> Option<FlowRecord> {
    let reply_ended = reply.map_or(0, |it| it.ended);
    if ended::both(flow.ended, reply_ended) || clock.has_timed_out(key, flow, reply) {
        return None;
    }
    let mut event = FlowEvent::NONE;
    let other = reply.map_or((0, 0), |it| (it.sequence, it.ended));
    event.describe(record_kind::PRESENT, key, flow, other);
    let mut record = event.record();
    if let Some(reply) = reply {
        record.carried |= u8::from(reply.bytes > 0);
        let later = reply.last_seen_ticks.wrapping_sub(flow.last_seen_ticks);
        if later.cast_signed() > 0 {
            record.last_seen_ticks = reply.last_seen_ticks;
        }
    }
    Some(record)
}
