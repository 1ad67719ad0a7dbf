//! Reading of all connections, many at a time.

use std::{
    collections::BTreeSet,
    fmt, io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData};
use lb_common::{
    address::{V4, V6},
    maps::{
        Backend, Flow, FlowKey, FlowRecord, LOOPBACK, direction, ended, mode, name, record_kind,
    },
};
use nix::libc;

use crate::datapath::{
    adopt::array,
    bpf_call::{BPF_MAP_LOOKUP_BATCH, bpf},
    family::Family,
    flows::{FlowClock, open_flows},
    layout::open_map,
};

/// Reads all connections of the flow tables as records of kind `PRESENT`, in chunks.
pub struct FlowScan {
    pin_path: std::path::PathBuf,
    v4: Table<V4>,
    v6: Table<V6>,
    /// Backends that peers know, too.
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

impl fmt::Debug for FlowScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowScan")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
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
            v4: Table::open(pin_path)?,
            v6: Table::open(pin_path)?,
            workers: BTreeSet::new(),
            position: Position::Start,
        })
    }

    /// Begins again with the next chunk.
    pub fn restart(&mut self) {
        self.position = Position::Start;
    }

    /// Reads about `limit` entries, and appends the open connections among them. Returns whether there are more.
    /// Connections to the manager's own server, from clients on the manager and those that have timed out are left out.
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
    let backends: Array<_, Backend> = array(pin_path, name::BACKENDS)?;
    let mut workers = BTreeSet::new();
    for (id, backend) in (0..).zip(backends.iter()) {
        let backend = backend.context("read map backends")?;
        if backend.port != 0 && backend.mode != mode::LOCAL {
            workers.insert(id);
        }
    }
    Ok(workers)
}

/// The flow table of a family.
struct Table<A: Family> {
    data: MapData,
    flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    keys: Vec<FlowKey<A>>,
    values: Vec<Flow<A>>,
}

/// The kernel's `union bpf_attr` for reading many entries.
#[repr(C)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl<A: Family> Table<A> {
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
        let next = self.read_batch(from, limit.max(1));
        let next = next.with_context(|| format!("read map {}", A::FLOWS))?;
        for (key, flow) in self.keys.iter().zip(&self.values) {
            if flow.direction == direction::REQUEST
                && (flow.counted, flow.superseded) == (1, 0)
                && flow.client_interface != LOOPBACK
                && workers.contains(&flow.backend)
            {
                let reply = self.flows.get(&flow.translated.reversed(), 0).ok();
                let reply = reply.filter(|it| it.translated.reversed() == *key);
                into.extend(present(key, flow, reply.as_ref(), clock));
            }
        }
        Ok(next)
    }

    /// Reads entries into `keys` and `values`.
    fn read_batch(&mut self, from: Option<u32>, mut limit: usize) -> io::Result<Option<u32>> {
        loop {
            self.keys.clear();
            self.keys.reserve(limit);
            self.values.clear();
            self.values.reserve(limit);
            let (start, mut next) = (from.unwrap_or(0), 0_u32);
            let mut batch = Batch {
                from: from.map_or(0, |_| (&raw const start).expose_provenance() as u64),
                next: (&raw mut next).expose_provenance() as u64,
                keys: self.keys.as_mut_ptr().expose_provenance() as u64,
                values: self.values.as_mut_ptr().expose_provenance() as u64,
                count: u32::try_from(limit).unwrap_or(u32::MAX),
                map: self.data.fd().as_fd().as_raw_fd().cast_unsigned(),
                element_flags: 0,
                flags: 0,
            };
            let outcome = bpf(BPF_MAP_LOOKUP_BATCH, &mut batch);
            let next = match outcome {
                Ok(_) => Some(next),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => None,
                    // A bucket has more entries than there is room for.
                    Some(libc::ENOSPC) => {
                        limit *= 2;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let read = batch.count as usize;
            if read > limit {
                return Err(io::Error::other(
                    "the kernel returned more than was asked for",
                ));
            }
            // SAFETY: the kernel has written as many keys and values, and every bit pattern is one (`Pod`).
            unsafe {
                self.keys.set_len(read);
                self.values.set_len(read);
            }
            return Ok(next);
        }
    }
}

/// The record of an open connection.
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
    let mut record = FlowRecord::NONE;
    record.describe(record_kind::PRESENT, key, flow);
    if let Some(reply) = reply {
        record.sequences[1] = reply.sequence;
        record.ended[1] = reply.ended;
        record.carried |= u8::from(reply.bytes > 0);
        if reply
            .last_seen_ticks
            .wrapping_sub(flow.last_seen_ticks)
            .cast_signed()
            > 0
        {
            record.last_seen_ticks = reply.last_seen_ticks;
        }
    }
    Some(record)
}
