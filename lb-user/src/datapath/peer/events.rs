//! The rings in which the programs report connections.

use std::{io, path::Path};

use anyhow::Result;
use lb_common::{
    address::V6,
    maps::{FlowEvent, FlowRecord, name},
};
use tokio::io::unix::AsyncFd;

use crate::datapath::named_map::{PerCpuMap, RingMap};

/// Most records of one batch.
const BATCH: usize = 4_096;

/// Map `flow_events`: connections that begin, end, or are unknown to a peer. The programs wake no reader.
#[derive(Debug)]
pub struct FlowEvents {
    ring: RingMap,
    lost: PerCpuMap<u64>,
}

impl FlowEvents {
    /// Opens the pinned map. It may have one reader only.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        Ok(Self {
            ring: RingMap::open(pin_path, name::FLOW_EVENTS)?,
            lost: PerCpuMap::open(pin_path, name::FLOW_EVENTS_LOST)?,
        })
    }

    /// Appends the records that are there, at most 4,096.
    pub fn read(&mut self, into: &mut Vec<FlowRecord>) {
        read(&mut self.ring, into, parse_event);
    }

    /// Returns the number of records that were lost because the ring was full, since the maps were created.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.lost.get(0)?.iter().sum())
    }
}

/// Map `unknown_clients`: unknown clients of services of mode `dsr`.
#[derive(Debug)]
pub struct UnknownClients(AsyncFd<RingMap>);

impl UnknownClients {
    /// Opens the pinned map within a tokio runtime. The map may have one reader only.
    ///
    /// # Errors
    ///
    /// The map cannot be opened.
    pub fn open(pin_path: &Path) -> Result<Self> {
        RingMap::open_async(pin_path, name::UNKNOWN_CLIENTS).map(Self)
    }

    /// Waits for records and appends those that are there, at most 4,096. Cancel safe.
    ///
    /// # Errors
    ///
    /// The map cannot be polled.
    pub async fn next_batch(&mut self, into: &mut Vec<FlowRecord>) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            if read(ready.get_inner_mut(), into, parse_record) > 0 {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Appends the records of at most [`BATCH`] entries; returns the number of entries read.
fn read(
    ring: &mut RingMap,
    into: &mut Vec<FlowRecord>,
    record: impl Fn(&[u8]) -> Option<FlowRecord>,
) -> usize {
    let mut count = 0;
    while count < BATCH
        && let Some(entry) = ring.next()
    {
        into.extend(record(&entry));
        count += 1;
    }
    count
}

/// Parses an entry of `unknown_clients`.
fn parse_record(bytes: &[u8]) -> Option<FlowRecord> {
    // SAFETY: `FlowRecord` is `Pod`.
    unsafe { value(bytes) }
}

/// Parses an entry of `flow_events`; `None` if its size is that of neither family.
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
    // SAFETY: the length is checked, and the caller guarantees that every bit pattern is a value.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
