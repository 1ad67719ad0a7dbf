//! Keeps the programs' counts of open connections true: what the kernel evicts from the flow tables, and
//! what its client has long left, ends without a packet that could be counted.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use lb_common::{
    address::{V4, V6},
    maps::{Flow, FlowKey, name},
};

use super::{
    bpffs::open_map,
    family::Family,
    flows::{Moment, last_seen_ns, open_flows},
};

/// Counts the flow tables' open connections, and writes into map `lost` how many of those in `active`
/// are no longer there. Nothing else writes `lost`.
///
/// Connections come and go meanwhile; what that falsifies is put right the next time.
///
/// # Errors
///
/// Names the map that could not be read or written.
pub fn recount(pin_path: &Path) -> Result<()> {
    let active: Array<_, u64> = counts(pin_path, name::ACTIVE)?;
    let mut lost: Array<_, u64> = counts(pin_path, name::LOST)?;
    let moment = Moment::read(pin_path)?;
    let mut present = BTreeMap::new();
    count::<V4>(pin_path, &moment, &mut present)?;
    count::<V6>(pin_path, &moment, &mut present)?;
    for id in 1..active.len() {
        let counted = active.get(&id, 0).context("read map active")?;
        let gone = counted.saturating_sub(present.get(&id).copied().unwrap_or(0));
        if lost.get(&id, 0).context("read map lost")? != gone {
            lost.set(id, gone, 0).context("write map lost")?;
        }
    }
    Ok(())
}

/// Counts a family's connections that `active` counts and that are still there, by backend.
fn count<A: Family>(
    pin_path: &Path,
    moment: &Moment,
    present: &mut BTreeMap<u32, u64>,
) -> Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let flows = open_flows::<A>(pin_path)?;
    for (_, flow) in flows.iter().filter_map(Result::ok) {
        if flow.counted == 0 {
            continue;
        }
        let mut past = moment.is_past(&flow, flow.last_seen_ns);
        // The other direction is worth a look-up only if this one has long been silent.
        if past {
            let twin = flows.get(&flow.leaves.reversed(), 0).ok();
            past = moment.is_past(&flow, last_seen_ns(&flow, twin.as_ref()));
        }
        if !past {
            *present.entry(flow.backend).or_default() += 1;
        }
    }
    Ok(())
}

fn counts(pin_path: &Path, map: &str) -> Result<Array<MapData, u64>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}
