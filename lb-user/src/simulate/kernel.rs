//! The maps in memory, and how the kernel chooses among them for a new connection.

use std::collections::BTreeMap;

use lb_core::{BackendId, MapUpdate, SlotKind};

use super::random::Random;

/// What the core has written, and the open connections.
#[derive(Debug, Default)]
pub struct Kernel {
    up: BTreeMap<BackendId, u32>,
    selection: Option<BackendId>,
    spread: bool,
    kind: Option<SlotKind>,
    places: Vec<BackendId>,
    turn: usize,
    active: BTreeMap<BackendId, u64>,
}

impl Kernel {
    pub fn apply(&mut self, command: MapUpdate) {
        match command {
            MapUpdate::SetBackend {
                backend,
                state,
                weight,
                ..
            } => {
                if state.is_up() {
                    self.up.insert(backend, weight);
                } else {
                    self.up.remove(&backend);
                }
            }
            MapUpdate::Select { backend, .. } => {
                self.selection = Some(backend);
                self.spread = false;
            }
            MapUpdate::SetSlots { kind, slots, .. } => {
                self.kind = Some(kind);
                self.places = slots;
            }
            MapUpdate::Spread { .. } => self.spread = true,
        }
    }

    /// Chooses a backend as `lb_common::steer` does.
    pub fn choose(&mut self, client: u32, random: &mut Random) -> Option<BackendId> {
        if !self.spread {
            return self.selection.filter(|it| self.up.contains_key(it));
        }
        match self.kind? {
            SlotKind::Ranked => None,
            SlotKind::Balanced => {
                let one = self.place(random.word() as usize)?;
                let other = self.place(random.word() as usize)?;
                Some(self.lighter(one, other))
            }
            SlotKind::RoundRobin => {
                self.turn = self.turn.wrapping_add(1);
                self.place(self.turn)
            }
            SlotKind::SourceHash => self.place(client as usize),
            SlotKind::LeastConnections => {
                let start = random.word() as usize;
                let places =
                    (0..self.places.len()).filter_map(|it| self.place(start.wrapping_add(it)));
                places.reduce(|one, other| self.lighter(one, other))
            }
        }
    }

    pub fn opened(&mut self, backend: BackendId) {
        *self.active.entry(backend).or_default() += 1;
    }

    pub fn closed(&mut self, backend: BackendId) {
        if let Some(active) = self.active.get_mut(&backend) {
            *active = active.saturating_sub(1);
        }
    }

    pub fn open_connections(&self) -> Vec<(BackendId, u64)> {
        self.active.iter().map(|(id, open)| (*id, *open)).collect()
    }

    fn place(&self, number: usize) -> Option<BackendId> {
        let backend = *self.places.get(number % self.places.len().max(1))?;
        self.up.contains_key(&backend).then_some(backend)
    }

    fn lighter(&self, one: BackendId, other: BackendId) -> BackendId {
        let weight = |it| u64::from(self.up.get(&it).copied().unwrap_or(0));
        let load = |it| self.active.get(&it).copied().unwrap_or(0) + 1;
        if load(other) * weight(one) < load(one) * weight(other) {
            other
        } else {
            one
        }
    }
}
