//! The slots of services that spread connections. The inactive generation is filled, then activated by one write.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::Ebpf;
use lb_common::maps::{CHOICE_SLOTS, Policy, first_choice, name};

use super::named_map::ArrayMap;

/// The maps `policies` and `choices`.
#[derive(Debug)]
pub struct ChoiceTable {
    policies: ArrayMap<Policy>,
    choices: ArrayMap<u32>,
    /// Known contents of `choices`, to skip writes that change nothing.
    written: BTreeMap<u32, u32>,
}

impl ChoiceTable {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            policies: ArrayMap::from_ebpf(ebpf, name::POLICIES)?,
            choices: ArrayMap::from_ebpf(ebpf, name::CHOICES)?,
            written: BTreeMap::new(),
        })
    }

    /// Writes backends to the slots of a service's inactive generation, and activates it with its fallback.
    pub fn replace(
        &mut self,
        service: u32,
        kind: u32,
        backends: &[u32],
        fallback: u32,
    ) -> Result<()> {
        let before = self.policies.get(service)?;
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
        self.policies.set(service, policy)
    }

    fn write(&mut self, slot: u32, backend: u32) -> Result<()> {
        if self.written.get(&slot) == Some(&backend) {
            return Ok(());
        }
        self.choices.set(slot, backend)?;
        self.written.insert(slot, backend);
        Ok(())
    }
}
