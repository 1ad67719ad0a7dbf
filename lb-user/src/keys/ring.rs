//! The keys that a manager knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, ensure};

use super::{Key, KeyId};

/// How many keys of one worker hold at a time: the one in use and the one that replaces it.
pub const KEYS_PER_WORKER: usize = 2;

/// Keys by their ids.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, Key>,
    places: BTreeMap<KeyId, String>,
    /// Names of files in the directory of keys that were not read.
    skipped: Vec<String>,
}

/// A key's id is at two places, each a file and a line.
#[derive(Debug, thiserror::Error)]
#[error(
    "{second}: the key {id} is there twice, first (of {worker}) in {first}: remove one of the two"
)]
pub struct DuplicateKey {
    id: KeyId,
    worker: String,
    pub first: String,
    pub second: String,
}

impl KeyRing {
    /// Adds a key, which came from `place`.
    ///
    /// # Errors
    ///
    /// Says that the id is taken, or that the worker has enough keys.
    pub fn add(&mut self, key: Key, place: &str) -> Result<()> {
        let (worker, id) = (key.worker(), key.id());
        if let Some(other) = self.keys.get(&id) {
            let twice = DuplicateKey {
                id,
                worker: other.worker().to_owned(),
                first: self.places.get(&id).cloned().unwrap_or_default(),
                second: place.to_owned(),
            };
            return Err(twice.into());
        }
        let held = self.of_worker(worker).count();
        ensure!(
            held < KEYS_PER_WORKER,
            "{place}: {worker} has {KEYS_PER_WORKER} keys already: remove the file of the one that \
             its agent uses no longer"
        );
        self.keys.insert(id, key);
        self.places.insert(id, place.to_owned());
        Ok(())
    }

    /// Notes files that were not read.
    pub fn skip(&mut self, names: Vec<String>) {
        self.skipped = names;
    }

    /// Says which files in the directory of keys were not read, if there are any.
    pub fn warning(&self, path: &Path) -> Option<String> {
        const SHOWN: usize = 5;
        let count = self.skipped.len();
        let names = self
            .skipped
            .iter()
            .take(SHOWN)
            .map(|name| format!("{name:?}"));
        let names: Vec<String> = names.collect();
        let more = match count.saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (count > 0).then(|| {
            format!(
                "not read as keys in {}: {}{more}; only files named *.key, without a dot in front, \
                 hold keys: rename these, or move them elsewhere",
                path.display(),
                names.join(", ")
            )
        })
    }

    /// Returns what is different in its successor, one sentence each.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let said = |key: &Key, what| format!("key {} of {} {what}", key.id(), key.worker());
        let same = |ring: &Self, key: &Key| ring.find(key.id()).is_some_and(|it| it.is(key));
        let added = new.iter().filter(|key| !same(self, key));
        let removed = self.iter().filter(|key| !same(new, key));
        removed
            .map(|key| said(key, "removed"))
            .chain(added.map(|key| said(key, "added")))
            .collect()
    }

    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
    }

    /// Returns those of these workers that have no key.
    pub fn lacking<'a>(&self, workers: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let has_none = |worker: &&str| self.of_worker(worker).next().is_none();
        workers.filter(has_none).collect()
    }

    pub fn of_worker(&self, worker: &str) -> impl Iterator<Item = &Key> {
        self.keys.values().filter(move |key| key.worker() == worker)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
