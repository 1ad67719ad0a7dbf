//! Keeps the programs' counts of open connections true: what the kernel evicts from the flow table, and
//! what its client has long left, ends without a packet that could be counted.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use lb_common::maps::name;

use super::{bpffs::open_map, flows::open_flows, stats::monotonic_ns};

/// Counts the flow table's open connections, and writes into map `lost` how many of those in `active`
/// are no longer there. Nothing else writes `lost`.
///
/// Connections come and go meanwhile; what that falsifies is put right the next time.
///
/// # Errors
///
/// Names the map that could not be read or written.
pub fn recount(pin_path: &Path, idle: Duration) -> Result<()> {
    let active: Array<_, u64> = counts(pin_path, name::ACTIVE)?;
    let mut lost: Array<_, u64> = counts(pin_path, name::LOST)?;
    let present = present(pin_path, idle)?;
    for id in 1..active.len() {
        let counted = active.get(&id, 0).context("read map active")?;
        let gone = counted.saturating_sub(present.get(&id).copied().unwrap_or(0));
        if lost.get(&id, 0).context("read map lost")? != gone {
            lost.set(id, gone, 0).context("write map lost")?;
        }
    }
    Ok(())
}

/// The connections that `active` counts and that are still there, by backend.
fn present(pin_path: &Path, idle: Duration) -> Result<BTreeMap<u32, u64>> {
    let flows = open_flows(pin_path)?;
    let now = monotonic_ns()?;
    let idle = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
    let mut present = BTreeMap::new();
    for flow in flows.iter().filter_map(|entry| entry.ok()).map(|it| it.1) {
        if flow.counted == 1 && now.saturating_sub(flow.last_seen_ns) <= idle {
            *present.entry(flow.backend).or_default() += 1;
        }
    }
    Ok(present)
}

fn counts(pin_path: &Path, map: &str) -> Result<Array<MapData, u64>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}
