//! In-memory versions of the maps from which the packet programs choose a backend. The programs' own code chooses:
//! [`lb_common::steer::choose`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use lb_common::address::V4;
use lb_common::maps::{Backend, FlowKey, Policy, SPREAD, state};
use lb_common::steer::{ChoiceTables, Step, choose};
use lb_core::{BackendId, MapUpdate};

use super::random::Random;

/// The only service.
const SERVICE: u32 = 0;

#[derive(Debug)]
pub struct MapTables {
    backends: BTreeMap<u32, Backend>,
    selection: u32,
    policy: Policy,
    choices: Vec<u32>,
    active_connections: BTreeMap<u32, u32>,
    round_robin: Cell<u32>,
    random: RefCell<Random>,
}

impl MapTables {
    pub fn new(random: Random) -> Self {
        Self {
            backends: BTreeMap::new(),
            selection: 0,
            policy: Policy::default(),
            choices: Vec::new(),
            active_connections: BTreeMap::new(),
            round_robin: Cell::new(0),
            random: RefCell::new(random),
        }
    }

    /// Applies an update like the datapath. Nothing reads the maps between two updates, so one generation of slots is
    /// enough.
    pub fn apply(&mut self, update: MapUpdate) {
        match update {
            MapUpdate::SetBackend {
                backend,
                state,
                weight,
                ..
            } => {
                let state = match state.is_up() {
                    true => state::UP,
                    false => state::DOWN,
                };
                let entry = Backend {
                    state,
                    weight,
                    ..Backend::default()
                };
                self.backends.insert(backend.0, entry);
            }
            MapUpdate::Select { backend, .. } => self.selection = backend.0,
            MapUpdate::SetSlots { kind, slots, .. } => {
                self.choices = slots.iter().map(|backend| backend.0).collect();
                self.policy = Policy {
                    kind: kind as u32,
                    slots: u32::try_from(slots.len()).unwrap_or(u32::MAX),
                    ..Policy::default()
                };
            }
            MapUpdate::Spread { .. } => self.selection = SPREAD,
        }
    }

    /// Chooses a backend for a new connection of this client.
    pub fn choose(&self, client: V4) -> Option<BackendId> {
        let key = FlowKey {
            source: client,
            ..FlowKey::NONE
        };
        let id = choose(self, SERVICE, &key);
        self.backend(id)
            .is_some_and(|backend| backend.state == state::UP)
            .then_some(BackendId(id))
    }

    pub fn opened(&mut self, backend: BackendId) {
        *self.active_connections.entry(backend.0).or_default() += 1;
    }

    pub fn closed(&mut self, backend: BackendId) {
        if let Some(open) = self.active_connections.get_mut(&backend.0) {
            *open = open.saturating_sub(1);
        }
    }

    pub fn open_connections(&self) -> Vec<(BackendId, u64)> {
        let counts = self.active_connections.iter();
        counts
            .map(|(id, open)| (BackendId(*id), u64::from(*open)))
            .collect()
    }
}

impl ChoiceTables for MapTables {
    fn selection(&self, _service: u32) -> Option<u32> {
        Some(self.selection)
    }

    fn policy(&self, _service: u32) -> Option<Policy> {
        Some(self.policy)
    }

    fn choice(&self, index: u32) -> Option<u32> {
        self.choices.get(index as usize).copied()
    }

    fn next_round_robin(&self, _service: u32) -> u32 {
        let number = self.round_robin.get();
        self.round_robin.set(number.wrapping_add(1));
        number
    }

    fn random(&self) -> u32 {
        self.random.borrow_mut().word()
    }

    fn repeat<S: Step<Self>>(&self, count: u32, steps: &mut S) {
        for number in 0..count {
            if steps.step(self, number) {
                return;
            }
        }
    }

    fn barrier_var(&self, number: u32) -> u32 {
        number
    }

    fn active_connections(&self, backend: u32) -> u32 {
        self.active_connections.get(&backend).copied().unwrap_or(0)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&id)
    }
}
