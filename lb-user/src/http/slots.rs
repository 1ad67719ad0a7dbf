//! The slots of connections. If none is free, an idle connection is closed for a new one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::{
    task::AbortHandle,
    time::{Duration, Instant},
};

/// The maximum number of connections.
const SLOTS: usize = 64;

/// The maximum number of connections of one address.
const SLOTS_PER_ADDRESS: usize = 48;

/// The maximum number of further connections, for health checks only.
const PROBE_SLOTS: usize = 8;

/// The number of connections from which clients get a short timeout.
const SHORT_TIMEOUT_FROM: usize = SLOTS / 2;

/// A connection whose request takes longer than this counts as idle.
const SERVING_TIMEOUT: Duration = Duration::from_secs(1);

/// The slots of all connections.
#[derive(Debug, Default, Clone)]
pub struct ConnectionSlots(Arc<Mutex<SlotTable>>);

#[derive(Debug, Default)]
struct SlotTable {
    /// The number of the last slot. Numbers increase with the time of the connection.
    last: u64,
    taken: BTreeMap<u64, Arc<ConnectionSlot>>,
}

/// A connection's slot.
#[derive(Debug)]
pub struct ConnectionSlot {
    number: u64,
    from: IpAddr,
    is_for_probes: bool,
    needs_short_timeout: bool,
    stage: Mutex<(Stage, Instant)>,
    task: OnceLock<AbortHandle>,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for a request, or its client receives the response.
    Idle,
    Serving,
    /// It streams events.
    Streaming,
}

impl ConnectionSlots {
    /// Returns a slot for a connection from this address. Another connection may be closed for it.
    pub fn acquire(&self, from: IpAddr) -> Arc<ConnectionSlot> {
        let mut table = self.lock();
        let ordinary = |slot: &&Arc<ConnectionSlot>| !slot.is_for_probes;
        let taken = table.taken.values().filter(ordinary).count();
        let own = table.taken.values().filter(ordinary);
        let own = own.filter(|slot| slot.from == from).count();
        let found = if own >= SLOTS_PER_ADDRESS {
            table.close_longest_idle(|slot| slot.from == from)
        } else {
            taken < SLOTS || table.close_longest_idle(|_| true)
        };
        let probes = table.taken.values().filter(|it| it.is_for_probes).count();
        if !found && probes >= PROBE_SLOTS {
            table.close_first_probe();
        }
        table.last += 1;
        let slot = Arc::new(ConnectionSlot {
            number: table.last,
            from,
            is_for_probes: !found,
            needs_short_timeout: !found || taken >= SHORT_TIMEOUT_FROM,
            stage: Mutex::new((Stage::Idle, Instant::now())),
            task: OnceLock::new(),
        });
        table.taken.insert(slot.number, slot.clone());
        slot
    }

    /// Releases a slot.
    pub fn release(&self, slot: &ConnectionSlot) {
        self.lock().taken.remove(&slot.number);
    }

    fn lock(&self) -> MutexGuard<'_, SlotTable> {
        // The table is consistent after a panic, too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotTable {
    /// Closes the connection among these that has been idle for longest; returns whether there was one.
    fn close_longest_idle(&mut self, filter: impl Fn(&ConnectionSlot) -> bool) -> bool {
        let now = Instant::now();
        let idle = self
            .taken
            .values()
            .filter(|slot| !slot.is_for_probes && filter(slot))
            .filter_map(|slot| Some((slot.idle_since(now)?, slot.number)));
        let longest = idle.min();
        longest.is_some_and(|(_, number)| self.close(number))
    }

    fn close_first_probe(&mut self) {
        let first = self.taken.values().find(|slot| slot.is_for_probes);
        if let Some(number) = first.map(|slot| slot.number) {
            self.close(number);
        }
    }

    fn close(&mut self, number: u64) -> bool {
        let Some(slot) = self.taken.remove(&number) else {
            return false;
        };
        if let Some(task) = slot.task.get() {
            task.abort();
        }
        true
    }
}

impl ConnectionSlot {
    pub fn is_for_probes(&self) -> bool {
        self.is_for_probes
    }

    /// Whether its client gets a short timeout.
    pub fn needs_short_timeout(&self) -> bool {
        self.needs_short_timeout
    }

    /// Sets the task that is aborted to close the connection.
    pub fn set_task(&self, task: AbortHandle) {
        // Called once, after the task is spawned.
        _ = self.task.set(task);
    }

    pub fn is_streaming(&self) -> bool {
        self.stage().0 == Stage::Streaming
    }

    pub fn set_stage(&self, stage: Stage) {
        *self.stage() = (stage, Instant::now());
    }

    /// Returns the time since which the connection is idle; `None` if it is not.
    fn idle_since(&self, now: Instant) -> Option<Instant> {
        let (stage, since) = *self.stage();
        match stage {
            Stage::Idle => Some(since),
            Stage::Serving if now.duration_since(since) > SERVING_TIMEOUT => Some(since),
            Stage::Serving | Stage::Streaming => None,
        }
    }

    fn stage(&self) -> MutexGuard<'_, (Stage, Instant)> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_room_for_others() {
        let slots = ConnectionSlots::default();
        let greedy: Vec<_> = (0..SLOTS_PER_ADDRESS)
            .map(|_| slots.acquire(address(1)))
            .collect();
        greedy
            .iter()
            .for_each(|slot| slot.set_stage(Stage::Serving));
        assert!(slots.acquire(address(1)).is_for_probes());
        assert!(!slots.acquire(address(2)).is_for_probes());
        // Those that were answered long ago make room for their own address first.
        advance(2 * SERVING_TIMEOUT).await;
        assert!(!slots.acquire(address(1)).is_for_probes());
        assert!(!slots.lock().taken.contains_key(&greedy[0].number));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_makes_room_and_a_streaming_one_does_not() {
        let slots = ConnectionSlots::default();
        let take = |from| {
            let slot = slots.acquire(address(from));
            slot.set_stage(Stage::Streaming);
            slot
        };
        let listeners: Vec<_> = (0..SLOTS - 1).map(|it| take((it % 8) as u8)).collect();
        let silent = slots.acquire(address(9));
        assert!(silent.needs_short_timeout() && !silent.is_for_probes());
        advance(Duration::from_millis(1)).await;
        assert!(!take(10).is_for_probes());
        assert!(!slots.lock().taken.contains_key(&silent.number));
        // No connection is idle now, but health checks get slots, the latest ones first.
        let probes: Vec<_> = (0..=PROBE_SLOTS)
            .map(|_| slots.acquire(address(11)))
            .collect();
        assert!(probes.iter().all(|slot| slot.is_for_probes()));
        let table = slots.lock();
        assert!(!table.taken.contains_key(&probes[0].number));
        assert!(table.taken.contains_key(&probes[1].number));
        assert!(
            listeners
                .iter()
                .all(|it| table.taken.contains_key(&it.number))
        );
        assert_eq!(table.taken.len(), SLOTS + PROBE_SLOTS);
    }
}
