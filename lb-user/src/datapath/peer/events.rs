//! The rings in which the programs report connections.

use std::{fmt, io, path::Path};

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::{
    address::V6,
    maps::{FlowEvent, FlowRecord, name},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::datapath::{layout::open_map, named_map::PerCpuMap};

/// Most records of one batch.
const BATCH: usize = 4_096;

/// Map `flow_events`: connections that begin, end, or are unknown to a peer. The programs wake no reader.
pub struct FlowEvents {
    ring: RingBuf<MapData>,
    lost: PerCpuMap<u64>,
}

impl fmt::Debug for FlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEvents").finish_non_exhaustive()
    }
}

impl FlowEvents {
    /// Opens the pinned map. It may have one reader only.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            ring: open_ring(pin_path, name::FLOW_EVENTS)?,
            lost: PerCpuMap::open(pin_path, name::FLOW_EVENTS_LOST)?,
        })
    }

    /// Appends the records that are there, at most 4,096.
    pub fn read(&mut self, into: &mut Vec<FlowRecord>) {
        read(&mut self.ring, into, parse_event);
    }

    /// Returns how many records found no room since the maps were made.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.lost.get(0)?.iter().sum())
    }
}

/// Map `unknown_clients`: unknown clients of services of mode `dsr`.
pub struct UnknownClients {
    state: State,
}

/// The first wait registers the ring with the runtime.
enum State {
    Opened(Option<RingBuf<MapData>>),
    Registered(AsyncFd<RingBuf<MapData>>),
}

impl fmt::Debug for UnknownClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnknownClients").finish_non_exhaustive()
    }
}

impl UnknownClients {
    /// Opens the pinned map. It may have one reader only.
    ///
    /// # Errors
    ///
    /// The map cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            state: State::Opened(Some(open_ring(pin_path, name::UNKNOWN_CLIENTS)?)),
        })
    }

    /// Waits for records and appends those that are there, at most 4,096. Cancel safe. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// The map cannot be waited for.
    pub async fn next_batch(&mut self, into: &mut Vec<FlowRecord>) -> io::Result<()> {
        let events = self.register()?;
        loop {
            let mut ready = events.readable_mut().await?;
            if read(ready.get_inner_mut(), into, parse_record) > 0 {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn register(&mut self) -> io::Result<&mut AsyncFd<RingBuf<MapData>>> {
        if let State::Opened(ring) = &mut self.state {
            let ring = ring.take();
            let ring = ring.ok_or_else(|| io::Error::other("the ring could not be registered"))?;
            // SAFETY: the ring owns its descriptor for its lifetime and is not replaced.
            let events = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
            self.state = State::Registered(events);
        }
        match &mut self.state {
            State::Registered(events) => Ok(events),
            State::Opened(_) => Err(io::Error::other("the ring is not registered")),
        }
    }
}

fn open_ring(pin_path: &Path, map: &str) -> Result<RingBuf<MapData>> {
    let ring = RingBuf::try_from(Map::RingBuf(open_map(pin_path, map)?));
    ring.with_context(|| format!("open map {map}"))
}

/// Appends the records of the entries that are there, at most [`BATCH`]; returns how many entries it has read.
fn read(
    ring: &mut RingBuf<MapData>,
    into: &mut Vec<FlowRecord>,
    record: impl Fn(&[u8]) -> Option<FlowRecord>,
) -> usize {
    let mut taken = 0;
    while taken < BATCH
        && let Some(entry) = ring.next()
    {
        into.extend(record(&entry));
        taken += 1;
    }
    taken
}

/// Parses an entry of `unknown_clients`.
fn parse_record(bytes: &[u8]) -> Option<FlowRecord> {
    // SAFETY: `FlowRecord` is `Pod`.
    unsafe { value(bytes) }
}

/// Parses an entry of `flow_events`; `None` if it has the size of no family's.
pub fn parse_event(bytes: &[u8]) -> Option<FlowRecord> {
    // SAFETY: integers and byte arrays only.
    match unsafe { value::<FlowEvent>(bytes) } {
        Some(event) => Some(event.record()),
        // SAFETY: as above.
        None => unsafe { value::<FlowEvent<V6>>(bytes) }.map(|event| event.record()),
    }
}

/// The value of an entry; `None` if it has another size.
///
/// # Safety
///
/// Every bit pattern must be a value of `T`.
unsafe fn value<T: Copy>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes, of which every pattern is a value, as the caller guarantees.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
