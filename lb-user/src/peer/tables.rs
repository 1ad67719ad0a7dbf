//! The replication's access to the kernel.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_common::maps::{FlowRecord, PeerLink, ticks};
use tokio::time::sleep;
use tracing::warn;

use super::{
    hub::Hub,
    kernel::{Kernel, Outcomes, Scan},
    short_lived::ShortLived,
};
use crate::datapath::{FlowEvents, FlowScan, Intake, PeerTables, monotonic_ns};

/// How long the reader waits between two reads, so that one frame carries many records: a frame costs both managers as
/// much as about fifty records. tokio adds up to a millisecond.
const COALESCING: Duration = Duration::from_millis(4);

/// The same after reads without records.
const IDLE: Duration = Duration::from_millis(8);

/// How often the counter of lost events is read.
const LOST_INTERVAL: Duration = Duration::from_millis(100);

/// Entries of a table that are read at once, in well under a millisecond.
const SCAN_ENTRIES: usize = 1_024;

/// The pinned maps and the intake program.
#[derive(Debug)]
pub struct KernelTables {
    pub intake: Intake,
    pub tables: PeerTables,
    pub pin_path: PathBuf,
}

impl Kernel for KernelTables {
    fn admit(&mut self, records: &[FlowRecord], outcomes: &mut Outcomes) -> Result<()> {
        for (outcome, count) in self.intake.admit(records)?.iter() {
            if count > 0 {
                *outcomes.entry(outcome.name()).or_default() += count;
            }
        }
        Ok(())
    }

    fn scan(&mut self) -> Result<Box<dyn Scan>> {
        Ok(Box::new(FlowScan::open(&self.pin_path)?))
    }

    fn set_links(&mut self, links: &[(u32, PeerLink)], incomplete: bool) -> Result<()> {
        self.tables.set_links(links, incomplete)
    }

    fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.tables.set_addresses(addresses)
    }

    fn now_ticks(&self) -> Result<u32> {
        Ok(ticks(monotonic_ns()?))
    }
}

impl Scan for FlowScan {
    fn next(&mut self, into: &mut Vec<FlowRecord>) -> Result<bool> {
        self.next_chunk(SCAN_ENTRIES, into)
    }
}

/// Queues the kernel's events for the peers, until the manager ends.
pub async fn read_events(mut events: FlowEvents, hub: Arc<Hub>) {
    let mut records = Vec::new();
    let mut short_lived = ShortLived::default();
    let mut lost_before = events.lost().unwrap_or_default();
    let mut checked = Instant::now();
    let mut read = Instant::now();
    let mut wait = COALESCING;
    loop {
        events.read(&mut records);
        // On average, the records have waited for half of the interval.
        let waited = read.elapsed() / 2;
        read = Instant::now();
        wait = match records.is_empty() {
            true => (wait * 2).min(IDLE),
            false => COALESCING,
        };
        short_lived.remove_from(&mut records);
        if !records.is_empty() {
            hub.publish(&records, read - waited);
            records.clear();
        }
        if checked.elapsed() >= LOST_INTERVAL {
            checked = Instant::now();
            match events.lost() {
                Ok(lost) if lost > lost_before => {
                    hub.record_loss(lost - lost_before);
                    lost_before = lost;
                }
                Ok(_) => {}
                Err(error) => warn!("{error:#}"),
            }
        }
        sleep(wait).await;
    }
}
