//! Reconciles the programs' counts of open connections with the flow tables: evicted and abandoned connections end
//! without a packet that the programs could count.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use lb_common::{
    address::{V4, V6},
    maps::{Flow, FlowKey, direction, name, ticks},
};

use super::{
    family::Family,
    flows::{FlowClock, open_flows},
    layout::open_map,
};

/// How many of a table's first keys are remembered to detect a restart of the iteration.
const LANDMARKS: usize = 16;

/// Attempts to read a table without a restart of the iteration.
const ATTEMPTS: usize = 4;

/// Counts the open connections in the flow tables, and writes to map `evicted` how many of `active` are gone. Nothing
/// else writes `evicted`.
///
/// Connections begin and end meanwhile. Connections that began after the count started are distinguished by their
/// time; other errors are corrected by the next call.
///
/// # Errors
///
/// Names the map that could not be read or written.
pub fn reconcile_connection_counts(pin_path: &Path) -> Result<()> {
    let active: Array<_, u64> = counts(pin_path, name::ACTIVE)?;
    let mut evicted: Array<_, u64> = counts(pin_path, name::EVICTED)?;
    let read = |id: u32| active.get(&id, 0).context("read map active");
    let before: Vec<u64> = (0..active.len()).map(read).collect::<Result<_>>()?;
    let clock = FlowClock::read(pin_path)?;
    let mut present = BTreeMap::new();
    count::<V4>(pin_path, &clock, &mut present)?;
    count::<V6>(pin_path, &clock, &mut present)?;
    for (id, before) in (0..).zip(before).skip(1) {
        let Present { old, new } = present.get(&id).copied().unwrap_or_default();
        let gone = before.saturating_sub(old);
        let gone = gone.min(read(id)?.saturating_sub(old + new));
        if evicted.get(&id, 0).context("read map evicted")? != gone {
            evicted.set(id, gone, 0).context("write map evicted")?;
        }
    }
    Ok(())
}

/// A backend's connections that `active` counts and that the table has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Present {
    old: u64,
    /// Begun after the count started, so not in the former value of `active`.
    new: u64,
}

/// Counts a family's connections by backend.
fn count<A: Family>(
    pin_path: &Path,
    clock: &FlowClock,
    present: &mut BTreeMap<u32, Present>,
) -> Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let flows = open_flows::<A>(pin_path)?;
    for _ in 0..ATTEMPTS {
        let mut counted = present.clone();
        let mut detector = RestartDetector::new();
        let mut entries = flows.iter().filter_map(Result::ok);
        let complete = entries.all(|(key, flow)| {
            let is_counted = flow.direction == direction::REQUEST && flow.counted == 1;
            if is_counted && !has_timed_out(&flows, &key, &flow, clock) {
                let present = counted.entry(flow.backend).or_default();
                let began = flow.created_ticks.wrapping_sub(ticks(clock.now_ns));
                match 0 < began && began <= u32::MAX / 2 {
                    true => present.new += 1,
                    false => present.old += 1,
                }
            }
            !detector.is_repeated(key)
        });
        if complete {
            *present = counted;
            return Ok(());
        }
    }
    bail!("map {} loses its entries too fast to be read", A::FLOWS)
}

/// Whether a flow has timed out. Looks up the reverse entry only if this direction has been idle for a while.
fn has_timed_out<A: Family>(
    flows: &HashMap<MapData, FlowKey<A>, Flow<A>>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    clock: &FlowClock,
) -> bool
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    clock.has_closed(clock.idle_ns(flow, None)) && {
        let reverse = flows.get(&flow.translated.reversed(), 0).ok();
        clock.has_timed_out(key, flow, reverse.as_ref())
    }
}

/// Detects that the kernel restarts an iteration. It does so if it has evicted the entry that was read last, and
/// everything would count twice.
#[derive(Debug)]
struct RestartDetector<K> {
    keys: Vec<K>,
}

impl<K: PartialEq> RestartDetector<K> {
    const fn new() -> Self {
        Self { keys: Vec::new() }
    }

    /// Records the next key; returns whether it is one of the first keys.
    fn is_repeated(&mut self, key: K) -> bool {
        let again = self.keys.contains(&key);
        if self.keys.len() < LANDMARKS {
            self.keys.push(key);
        }
        again
    }
}

/// Opens a pinned map of counts by backend.
pub(super) fn counts(pin_path: &Path, map: &str) -> Result<Array<MapData, u64>> {
    Array::try_from(Map::Array(open_map(pin_path, map)?)).with_context(|| format!("open map {map}"))
}

#[cfg(test)]
mod tests {
    use super::RestartDetector;

    #[test]
    fn notices_when_a_table_begins_again() {
        let mut detector = RestartDetector::new();
        assert!((0..10_000).all(|key| !detector.is_repeated(key)));
        // The first ones may have been evicted meanwhile.
        assert!(detector.is_repeated(3));
        assert!(!detector.is_repeated(10_000));
    }
}
