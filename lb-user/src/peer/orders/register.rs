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

/// How long the entry of a removed subject is kept.
const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The most entries: more than all denied prefixes and workers together.
const MAX_ENTRIES: usize = 32_768;

/// The subject of an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The orders for a worker.
    Orders(String),
    Joined(String),
    Denied(Prefix),
}

/// What is in force for a subject; an entry without a value says that nothing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderValue {
    Orders(Vec<AdminCommand>),
    Joined(IpAddr),
    Denied(Denied),
}

/// The last change of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEntry {
    pub subject: Subject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<OrderValue>,
    /// Milliseconds since 1970, greater than that of the entry it replaces. Of two equal stamps, the one with the
    /// greater `manager` wins.
    pub stamp: u64,
    /// The manager on which the subject was changed.
    pub manager: String,
    /// The peer that sent it.
    #[serde(skip)]
    pub from: Option<usize>,
    /// Number of the change in these registers.
    #[serde(skip)]
    change: u64,
    /// Whether the entry is not in force on this manager yet. A peer's value is ignored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_pending: bool,
}

/// The operator's state in force on this manager.
#[derive(Debug, Clone, Default)]
pub struct OperatorState {
    pub overrides: AdminOverrides,
    pub membership: Membership,
    pub denied: DenyList,
}

impl OperatorState {
    fn values(&self) -> BTreeMap<Subject, OrderValue> {
        let mut orders: BTreeMap<String, Vec<AdminCommand>> = BTreeMap::new();
        for command in self.overrides.commands() {
            orders
                .entry(command.worker.clone())
                .or_default()
                .push(command);
        }
        let orders = orders.into_iter().map(|(worker, mut commands)| {
            // Two managers must list the same commands in the same sequence.
            commands.sort_by_cached_key(|it| (it.service.clone(), format!("{:?}", it.action)));
            (Subject::Orders(worker), OrderValue::Orders(commands))
        });
        let joined = self.membership.iter();
        let joined =
            joined.map(|(worker, at)| (Subject::Joined(worker.to_owned()), OrderValue::Joined(at)));
        let denied = self.denied.iter();
        let denied = denied.map(|it| (Subject::Denied(it.prefix), OrderValue::Denied(it.clone())));
        orders.chain(joined).chain(denied).collect()
    }
}

/// The entries of all subjects, as in the state file `peers.json`.
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

    /// Records changes that were made on this manager; returns whether there are any.
    pub fn record_changes(&mut self, in_force: &OperatorState, now_ms: u64, manager: &str) -> bool {
        let values = in_force.values();
        let subjects: BTreeSet<&Subject> = values.keys().chain(self.entries.keys()).collect();
        let mut changed = Vec::new();
        for subject in subjects {
            let known = self.entries.get(subject);
            let value = values.get(subject);
            let is_same = known.is_some_and(|known| known.value.as_ref() == value);
            // An entry that is not applied yet differs from what is in force, but nothing was changed here.
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

    /// Records a peer's entry if it is newer; returns whether it is.
    pub fn merge(&mut self, entry: OrderEntry, peer: usize) -> bool {
        let known = self.entries.get(&entry.subject);
        let is_newer =
            known.is_none_or(|known| (entry.stamp, &entry.manager) > (known.stamp, &known.manager));
        if !is_newer || known.is_none() && self.entries.len() >= MAX_ENTRIES || !entry.is_valid() {
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

    /// Marks an entry as in force on this manager.
    pub fn applied(&mut self, entry: &OrderEntry) {
        if let Some(known) = self.entries.get_mut(&entry.subject)
            && known.change == entry.change
        {
            known.is_pending = false;
        }
    }

    /// Drops the entries of subjects that were removed long ago.
    pub fn expire(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(milliseconds(TOMBSTONE));
        self.entries
            .retain(|_, entry| entry.value.is_some() || entry.stamp >= oldest);
    }
}

impl OrderEntry {
    /// Whether the value is valid and fits the subject.
    fn is_valid(&self) -> bool {
        match (&self.subject, &self.value) {
            (_, None) => true,
            (Subject::Orders(worker), Some(OrderValue::Orders(commands))) => {
                let is_its = |it: &AdminCommand| it.worker == *worker && it.check().is_ok();
                !commands.is_empty() && commands.iter().all(is_its)
            }
            (Subject::Joined(worker), Some(OrderValue::Joined(_))) => {
                crate::worker_name::check_name(worker).is_ok()
            }
            (Subject::Denied(prefix), Some(OrderValue::Denied(denied))) => {
                let reason = denied.reason.as_deref();
                denied.prefix == *prefix
                    && reason.is_none_or(|it| lb_core::check_reason(it).is_ok())
            }
            _ => false,
        }
    }
}
