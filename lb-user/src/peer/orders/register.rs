//! The last change of each worker's orders, each joined worker and each denied prefix, of whichever manager.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_core::{AdminCommand, AdminOverrides, milliseconds};
use serde::{Deserialize, Serialize};

use crate::{
    deny::{Denied, DenyList, Prefix},
    membership::Membership,
};

/// How long it is remembered that something was removed.
const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// More entries than all denied prefixes and workers together.
const MOST: usize = 32_768;

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The orders for a worker.
    Orders(String),
    Joined(String),
    Denied(Prefix),
}

/// What is in force; an entry without a value says that nothing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Orders(Vec<AdminCommand>),
    Joined(IpAddr),
    Denied(Denied),
}

/// The last change of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEntry {
    pub subject: Subject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Milliseconds since 1970, at least one more than of the entry that it replaces; of two equal ones the larger
    /// name counts.
    pub stamp: u64,
    /// The manager where it was changed.
    pub manager: String,
    /// The peer that sent it.
    #[serde(skip)]
    pub from: Option<usize>,
    /// Number of the change here.
    #[serde(skip)]
    change: u64,
    /// Whether it is not in force here.
    #[serde(skip)]
    is_pending: bool,
}

/// What is in force.
#[derive(Debug, Clone, Default)]
pub struct OperatorState {
    pub overrides: AdminOverrides,
    pub membership: Membership,
    pub denied: DenyList,
}

impl OperatorState {
    fn values(&self) -> BTreeMap<Subject, Value> {
        let mut orders: BTreeMap<String, Vec<AdminCommand>> = BTreeMap::new();
        for command in self.overrides.commands() {
            orders
                .entry(command.worker.clone())
                .or_default()
                .push(command);
        }
        let orders = orders.into_iter().map(|(worker, mut commands)| {
            // In an order that does not depend on which was given first.
            commands.sort_by_cached_key(|it| (it.service.clone(), format!("{:?}", it.action)));
            (Subject::Orders(worker), Value::Orders(commands))
        });
        let joined = self.membership.iter();
        let joined =
            joined.map(|(worker, at)| (Subject::Joined(worker.to_owned()), Value::Joined(at)));
        let denied = self.denied.iter();
        let denied = denied.map(|it| (Subject::Denied(it.prefix), Value::Denied(it.clone())));
        orders.chain(joined).chain(denied).collect()
    }
}

/// All entries. The state file holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<OrderEntry>", into = "Vec<OrderEntry>")]
pub struct Registers {
    entries: BTreeMap<Subject, OrderEntry>,
    last_change: u64,
}

impl From<Vec<OrderEntry>> for Registers {
    fn from(entries: Vec<OrderEntry>) -> Self {
        let mut registers = Self::default();
        entries.into_iter().for_each(|entry| registers.set(entry));
        registers
    }
}

impl From<Registers> for Vec<OrderEntry> {
    fn from(registers: Registers) -> Self {
        registers.entries.into_values().collect()
    }
}

impl Registers {
    fn set(&mut self, mut entry: OrderEntry) {
        self.last_change += 1;
        entry.change = self.last_change;
        self.entries.insert(entry.subject.clone(), entry);
    }

    /// Returns the entries that were changed after `change`, the oldest change first.
    pub fn since(&self, change: u64) -> Vec<(u64, &OrderEntry)> {
        let entries = self.entries.values();
        let newer = entries.filter(|entry| entry.change > change);
        let mut newer: Vec<_> = newer.map(|entry| (entry.change, entry)).collect();
        newer.sort_by_key(|(change, _)| *change);
        newer
    }

    /// Takes up what was changed here; returns whether anything was.
    pub fn note(&mut self, in_force: &OperatorState, now_ms: u64, manager: &str) -> bool {
        let values = in_force.values();
        let subjects: BTreeSet<&Subject> = values.keys().chain(self.entries.keys()).collect();
        let mut changed = Vec::new();
        for subject in subjects {
            let known = self.entries.get(subject);
            let value = values.get(subject);
            let is_same = known.is_some_and(|known| known.value.as_ref() == value);
            // What could not be applied yet is no change.
            if is_same || known.is_some_and(|known| known.is_pending) {
                continue;
            }
            changed.push(OrderEntry {
                subject: subject.clone(),
                value: value.cloned(),
                stamp: now_ms.max(known.map_or(0, |known| known.stamp + 1)),
                manager: manager.to_owned(),
                from: None,
                change: 0,
                is_pending: false,
            });
        }
        let is_changed = !changed.is_empty();
        changed.into_iter().for_each(|entry| self.set(entry));
        is_changed
    }

    /// Takes up a peer's entry if it is newer; returns whether it is.
    pub fn merge(&mut self, entry: OrderEntry, peer: usize) -> bool {
        let known = self.entries.get(&entry.subject);
        let is_newer =
            known.is_none_or(|known| (entry.stamp, &entry.manager) > (known.stamp, &known.manager));
        if !is_newer || known.is_none() && self.entries.len() >= MOST || !entry.is_sound() {
            return false;
        }
        let is_pending = known.map_or(entry.value.is_some(), |known| {
            known.is_pending || known.value != entry.value
        });
        self.set(OrderEntry {
            from: Some(peer),
            is_pending,
            ..entry
        });
        true
    }

    /// Returns the entries that are not in force here.
    pub fn pending(&self) -> Vec<OrderEntry> {
        let entries = self.entries.values();
        entries.filter(|entry| entry.is_pending).cloned().collect()
    }

    /// Notes that an entry is in force here.
    pub fn applied(&mut self, entry: &OrderEntry) {
        if let Some(known) = self.entries.get_mut(&entry.subject)
            && known.change == entry.change
        {
            known.is_pending = false;
        }
    }

    /// Forgets what was removed long ago.
    pub fn expire(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(milliseconds(TOMBSTONE));
        self.entries
            .retain(|_, entry| entry.value.is_some() || entry.stamp >= oldest);
    }
}

impl OrderEntry {
    /// Whether the value is of the subject.
    fn is_sound(&self) -> bool {
        match (&self.subject, &self.value) {
            (_, None) => true,
            (Subject::Orders(worker), Some(Value::Orders(commands))) => {
                let is_its = |it: &AdminCommand| it.worker == *worker && it.check().is_ok();
                !commands.is_empty() && commands.iter().all(is_its)
            }
            (Subject::Joined(worker), Some(Value::Joined(_))) => {
                crate::worker_name::check_name(worker).is_ok()
            }
            (Subject::Denied(prefix), Some(Value::Denied(denied))) => {
                let reason = denied.reason.as_deref();
                denied.prefix == *prefix
                    && reason.is_none_or(|it| lb_core::check_reason(it).is_ok())
            }
            _ => false,
        }
    }
}
