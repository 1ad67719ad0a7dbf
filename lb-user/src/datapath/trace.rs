//! The trace of single packets, switched on and read through the pins by whoever traces.
//!
//! Its maps are the only ones that another task than the manager's main one writes: they steer nothing.

use std::{fmt, path::Path};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, RingBuf};
use lb_common::maps::{TraceConfig, TraceCounts, TraceEvent, name};
use tokio::io::{Interest, unix::AsyncFd};

use super::{clock::monotonic_ns, layout::open_map};

/// For how long an order stands that is not renewed.
const EXPIRY_NS: u64 = 3_000_000_000;

/// A trace under way. Dropping it ends it; should that not happen, it lapses.
pub struct KernelTrace {
    config: TraceConfig,
    configs: Array<MapData, TraceConfig>,
    counts: Array<MapData, TraceCounts>,
    events: AsyncFd<RingBuf<MapData>>,
    started_ns: u64,
}

impl fmt::Debug for KernelTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracing")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl KernelTrace {
    /// Has the packets told that `config` wants, from now on.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be opened or written.
    pub fn start(pin_path: &Path, config: TraceConfig) -> Result<Self> {
        let array = |map| Ok::<_, anyhow::Error>(Map::Array(open_map(pin_path, map)?));
        let open = |map| format!("open map {map}");
        let ring = RingBuf::try_from(Map::RingBuf(open_map(pin_path, name::TRACE_EVENTS)?))
            .with_context(|| open(name::TRACE_EVENTS))?;
        // SAFETY: the ring owns its descriptor, keeps it for as long as it lives, and is not replaced.
        let events = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let mut tracing = Self {
            config,
            configs: Array::try_from(array(name::TRACE)?).with_context(|| open(name::TRACE))?,
            counts: Array::try_from(array(name::TRACE_COUNTS)?)
                .with_context(|| open(name::TRACE_COUNTS))?,
            events: events.context("wait for map trace_events")?,
            started_ns: monotonic_ns()?,
        };
        // What an earlier one has left unread.
        while tracing.events.get_mut().next().is_some() {}
        tracing
            .counts
            .set(0, TraceCounts::default(), 0)
            .context("write map trace_counts")?;
        tracing.renew()?;
        Ok(tracing)
    }

    /// Lets the order stand for a while longer.
    ///
    /// # Errors
    ///
    /// Says that the map cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.config.expires_ns = monotonic_ns()? + EXPIRY_NS;
        self.configs
            .set(0, self.config, 0)
            .context("write map trace")
    }

    /// Waits for a packet. Cancelled, it loses none.
    ///
    /// # Errors
    ///
    /// Says that the map cannot be waited for.
    pub async fn next(&mut self) -> Result<TraceEvent> {
        loop {
            let ready = self.events.readable_mut().await;
            let mut ready = ready.context("wait for map trace_events")?;
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

    /// What was wanted and is not told, since it began.
    ///
    /// # Errors
    ///
    /// Says that the map cannot be read.
    pub fn counts(&self) -> Result<TraceCounts> {
        self.counts.get(&0, 0).context("read map trace_counts")
    }
}

impl Drop for KernelTrace {
    fn drop(&mut self) {
        // It lapses otherwise.
        _ = self.configs.set(0, TraceConfig::OFF, 0);
    }
}

/// An entry of the ring as what it is; nothing if it has another size.
fn event(bytes: &[u8]) -> Option<TraceEvent> {
    if bytes.len() < size_of::<TraceEvent>() {
        return None;
    }
    // SAFETY: as many bytes as are read, of which any are a value, as `Pod` says.
    Some(unsafe { bytes.as_ptr().cast::<TraceEvent>().read_unaligned() })
}
