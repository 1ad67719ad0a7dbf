//! Reconciles the programs' counts of connections with the tables: evicted and abandoned connections end without a
//! packet that the programs could count.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, bail};
use lb_common::{
    address::{V4, V6},
    maps::{ALL_DIRECT, Backend, Flow, FlowKey, Handshake, direction, mode, name, ticks},
};

use super::{
    client_counts::{ClientCounts, Present},
    family::Family,
    flows::{FlowClock, FlowTable, open_flows},
    named_map::ArrayMap,
};

/// How many of a table's first keys are remembered to detect a restart of the iteration.
const REMEMBERED_KEYS: usize = 16;

/// Attempts to read a table without a restart of the iteration.
const ATTEMPTS: usize = 4;

/// Counts the open connections in the flow tables, and writes to map `evicted` how many of `active` are gone. Nothing
/// else writes `evicted`. Corrects the counts of clients.
///
/// Connections begin and end meanwhile. Connections that began after the count started are distinguished by their
/// time; other errors are corrected by the next call.
///
/// # Errors
///
/// Names the map that could not be read or written.
pub fn reconcile_connection_counts(pin_path: &Path) -> Result<()> {
    let active = ArrayMap::<u64>::open(pin_path, name::ACTIVE)?;
    let mut evicted = ArrayMap::<u64>::open(pin_path, name::EVICTED)?;
    let before: Vec<u64> = active.values().collect::<Result<_>>()?;
    let clock = FlowClock::read(pin_path)?;
    let mut clients = ClientCounts::read(pin_path, &clock.settings)?;
    let direct = direct_backends(pin_path)?;
    let direct_open = active.get(ALL_DIRECT)?;
    let direct_open = direct_open.saturating_sub(evicted.get(ALL_DIRECT)?);
    let is_crowded = direct_open >= clock.settings.direct_flows.into();
    let mut count = Count {
        clock: &clock,
        is_crowded,
        present: BTreeMap::new(),
        clients: BTreeMap::new(),
    };
    count.family::<V4>(pin_path)?;
    count.family::<V6>(pin_path)?;
    let Count {
        mut present,
        clients: counted,
        ..
    } = count;
    let of_direct = present.iter().filter(|(id, _)| direct.contains(id));
    let all_direct = of_direct.fold(Present::default(), |sum, (_, one)| sum.plus(*one));
    present.insert(ALL_DIRECT, all_direct);
    for (id, before) in (0..).zip(before) {
        let Present { old, new } = present.get(&id).copied().unwrap_or_default();
        let gone = before.saturating_sub(old);
        let gone = gone.min(active.get(id)?.saturating_sub(old + new));
        if evicted.get(id)? != gone {
            evicted.set(id, gone)?;
        }
    }
    clients.correct(&counted)
}

/// The backends of mode `dsr`.
fn direct_backends(pin_path: &Path) -> Result<BTreeSet<u32>> {
    let backends = ArrayMap::<Backend>::open(pin_path, name::BACKENDS)?;
    let mut direct = BTreeSet::new();
    for (id, backend) in (0..).zip(backends.values()) {
        if backend?.mode == mode::DSR {
            direct.insert(id);
        }
    }
    Ok(direct)
}

/// The counts of the connections in the tables.
struct Count<'a> {
    clock: &'a FlowClock,
    /// Whether connections of mode `dsr` use their whole share of the flow table.
    is_crowded: bool,
    /// By backend.
    present: BTreeMap<u32, Present>,
    clients: BTreeMap<V6, Present>,
}

impl Count<'_> {
    /// Counts a family's connections.
    fn family<A: Family>(&mut self, pin_path: &Path) -> Result<()> {
        let mut flows = open_flows::<A>(pin_path)?;
        let unproven = self.flows(&flows)?;
        for (key, flow) in unproven {
            for entry in [key, flow.translated.reversed()] {
                // It may have been evicted meanwhile.
                _ = flows.remove(&entry);
            }
        }
        if self.clock.settings.per_client != 0 {
            let half_open = ArrayMap::<Handshake<A>>::open(pin_path, A::HALF_OPEN)?;
            for handshake in half_open.iter().filter_map(Result::ok) {
                if handshake.is_valid() && self.clock.is_pending(&handshake) {
                    let is_new = handshake.created_ns > self.clock.now_ns;
                    let client = handshake.client.source.prefix();
                    self.clients.entry(client).or_default().add(is_new);
                }
            }
        }
        Ok(())
    }

    /// Counts the open connections of a flow table, and returns those of mode `dsr` to remove.
    fn flows<A: Family>(&mut self, flows: &FlowTable<A>) -> Result<Vec<(FlowKey<A>, Flow<A>)>> {
        let is_limited = self.clock.settings.per_client != 0;
        for _ in 0..ATTEMPTS {
            let (mut present, mut clients) = (self.present.clone(), self.clients.clone());
            let mut unproven = Vec::new();
            let mut detector = RestartDetector::new();
            let mut entries = flows.iter().filter_map(Result::ok);
            let complete = entries.all(|(key, flow)| {
                let is_counted = flow.direction == direction::REQUEST && flow.counted == 1;
                if is_counted && self.is_crowded && self.clock.is_unproven(&key, &flow) {
                    unproven.push((key, flow));
                } else if is_counted && !has_timed_out(flows, &key, &flow, self.clock) {
                    let began = flow.created_ticks.wrapping_sub(ticks(self.clock.now_ns));
                    let is_new = 0 < began && began <= u32::MAX / 2;
                    present.entry(flow.backend).or_default().add(is_new);
                    if is_limited {
                        let client = clients.entry(key.source.prefix()).or_default();
                        client.add(is_new);
                    }
                }
                !detector.is_repeated(key)
            });
            if complete {
                (self.present, self.clients) = (present, clients);
                return Ok(unproven);
            }
        }
        bail!("map {} loses its entries too fast to be read", A::FLOWS)
    }
}

/// Whether a flow has timed out. Looks up the reverse entry only if this direction has been idle for a while.
fn has_timed_out<A: Family>(
    flows: &FlowTable<A>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    clock: &FlowClock,
) -> bool {
    clock.has_closed(clock.idle_ns(flow, None)) && {
        let reverse = flows.get(&flow.translated.reversed());
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
        if self.keys.len() < REMEMBERED_KEYS {
            self.keys.push(key);
        }
        again
    }
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
