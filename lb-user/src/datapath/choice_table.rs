//! The slots of services that spread connections. The inactive generation is filled, then activated by one write.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use lb_common::maps::{CHOICE_SLOTS, Policy, first_choice};

/// The maps `policies` and `choices`.
pub struct ChoiceTable {
    policies: Array<MapData, Policy>,
    choices: Array<MapData, u32>,
    /// Known contents of `choices`, to skip writes that change nothing.
    written: BTreeMap<u32, u32>,
}

impl ChoiceTable {
    pub fn new(policies: Array<MapData, Policy>, choices: Array<MapData, u32>) -> Self {
        Self {
            policies,
            choices,
            written: BTreeMap::new(),
        }
    }

    /// Writes backends to the slots of a service's inactive generation, and activates it with its fallback.
    pub fn replace(
        &mut self,
        service: u32,
        kind: u32,
        backends: &[u32],
        fallback: u32,
    ) -> Result<()> {
        let before = self
            .policies
            .get(&service, 0)
            .with_context(|| format!("read entry {service} of map policies"))?;
        let slots = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let policy = Policy {
            kind,
            generation: (before.generation & 1) ^ 1,
            slots: slots.min(CHOICE_SLOTS),
            fallback,
        };
        if policy.slots == 0 {
            return Ok(());
        }
        // During the one write, a packet may see the old generation with the new number of slots, or the reverse.
        // Those slots must hold backends, too.
        let first = first_choice(service, policy.generation);
        let more = before.slots.min(CHOICE_SLOTS).max(policy.slots);
        for (slot, backend) in (first..first + more).zip(backends.iter().cycle()) {
            self.write(slot, *backend)?;
        }
        let first = first_choice(service, before.generation);
        for (slot, backend) in (before.slots..policy.slots).zip(backends) {
            self.write(first + slot, *backend)?;
        }
        self.policies
            .set(service, policy, 0)
            .with_context(|| format!("write entry {service} of map policies"))
    }

    fn write(&mut self, slot: u32, backend: u32) -> Result<()> {
        if self.written.get(&slot) == Some(&backend) {
            return Ok(());
        }
        self.choices
            .set(slot, backend, 0)
            .with_context(|| format!("write entry {slot} of map choices"))?;
        self.written.insert(slot, backend);
        Ok(())
    }
}
