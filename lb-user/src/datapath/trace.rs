//! Access to the packet trace through the pins.
//!
//! Not only the manager's main task may write its maps, because they steer no packets.

use std::path::Path;

use anyhow::{Context, Result};
use lb_common::maps::{TraceConfig, TraceCounts, TraceEvent, name};
use tokio::io::unix::AsyncFd;

use super::{
    clock::monotonic_ns,
    named_map::{ArrayMap, RingMap},
};

/// Time after which a trace expires unless renewed.
const EXPIRY_NS: u64 = 3_000_000_000;

/// A running trace. Dropping it ends it; otherwise it expires.
#[derive(Debug)]
pub struct KernelTrace {
    config: TraceConfig,
    configs: ArrayMap<TraceConfig>,
    counts: ArrayMap<TraceCounts>,
    events: AsyncFd<RingMap>,
    started_ns: u64,
}

impl KernelTrace {
    /// Starts to record the packets that match `config`.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened or written.
    pub fn start(pin_path: &Path, config: TraceConfig) -> Result<Self> {
        let mut trace = Self {
            config,
            configs: ArrayMap::open(pin_path, name::TRACE)?,
            counts: ArrayMap::open(pin_path, name::TRACE_COUNTS)?,
            events: RingMap::open_async(pin_path, name::TRACE_EVENTS)?,
            started_ns: monotonic_ns()?,
        };
        // Discard unread events of an earlier trace.
        while trace.events.get_mut().next().is_some() {}
        trace.counts.set(0, TraceCounts::default())?;
        trace.renew()?;
        Ok(trace)
    }

    /// Postpones the expiry.
    ///
    /// # Errors
    ///
    /// The map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.config.expires_ns = monotonic_ns()? + EXPIRY_NS;
        self.configs.set(0, self.config)
    }

    /// Waits for an event. Cancel safe.
    ///
    /// # Errors
    ///
    /// The map cannot be polled.
    pub async fn next(&mut self) -> Result<TraceEvent> {
        loop {
            let ready = self.events.readable_mut().await;
            let mut ready = ready.context("poll map trace_events")?;
            let Some(entry) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                continue;
            };
            match event(&entry) {
                Some(event) if event.time_ns >= self.started_ns => return Ok(event),
                _ => {}
            }
        }
    }

    /// Returns the number of matching packets that were not recorded.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn counts(&self) -> Result<TraceCounts> {
        self.counts.get(0)
    }
}

impl Drop for KernelTrace {
    fn drop(&mut self) {
        // On failure it expires.
        _ = self.configs.set(0, TraceConfig::OFF);
    }
}

/// Parses an entry of the ring; `None` if it has another size.
fn event(bytes: &[u8]) -> Option<TraceEvent> {
    if bytes.len() < size_of::<TraceEvent>() {
        return None;
    }
    // SAFETY: the length is checked, and every bit pattern is a value (`Pod`).
    Some(unsafe { bytes.as_ptr().cast::<TraceEvent>().read_unaligned() })
}
