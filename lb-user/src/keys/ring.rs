//! The keys of a manager.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, ensure};

use super::{Key, KeyId};

/// The most keys of one worker: the one in use and the one that replaces it.
pub const KEYS_PER_WORKER: usize = 2;

/// Keys by their ids.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, Key>,
    /// File and line of each key.
    locations: BTreeMap<KeyId, String>,
    /// Names of files in the directory of keys that were not read.
    skipped: Vec<String>,
}

/// Two keys have one id. `first` and `second` are file and line.
#[derive(Debug, thiserror::Error)]
#[error("{second}: key {id} exists twice, first (of {worker}) in {first}: remove one of the two")]
pub struct DuplicateKey {
    id: KeyId,
    worker: String,
    pub first: String,
    pub second: String,
}

impl KeyRing {
    /// Adds a key, with its file and line.
    ///
    /// # Errors
    ///
    /// Says that the id exists, or that the worker has [`KEYS_PER_WORKER`] keys.
    pub fn add(&mut self, key: Key, location: &str) -> Result<()> {
        let (worker, id) = (key.worker(), key.id());
        if let Some(other) = self.keys.get(&id) {
            let twice = DuplicateKey {
                id,
                worker: other.worker().to_owned(),
                first: self.locations.get(&id).cloned().unwrap_or_default(),
                second: location.to_owned(),
            };
            return Err(twice.into());
        }
        let held = self.of_worker(worker).count();
        ensure!(
            held < KEYS_PER_WORKER,
            "{location}: {worker} has {KEYS_PER_WORKER} keys already: remove the file of the one that \
             its agent uses no longer"
        );
        self.keys.insert(id, key);
        self.locations.insert(id, location.to_owned());
        Ok(())
    }

    /// Sets the names of files that were not read.
    pub fn set_skipped(&mut self, names: Vec<String>) {
        self.skipped = names;
    }

    /// Returns a warning that names the files in the directory of keys that were not read, if there are any.
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

    /// Returns the differences of another ring, one sentence each.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let text = |key: &Key, what| format!("key {} of {} {what}", key.id(), key.worker());
        let same =
            |ring: &Self, key: &Key| ring.find(key.id()).is_some_and(|it| it.is_same_as(key));
        let added = new.iter().filter(|key| !same(self, key));
        let removed = self.iter().filter(|key| !same(new, key));
        removed
            .map(|key| text(key, "removed"))
            .chain(added.map(|key| text(key, "added")))
            .collect()
    }

    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
    }

    /// Returns those of these workers that have no key.
    pub fn workers_without_key<'a>(
        &self,
        workers: impl Iterator<Item = &'a str>,
    ) -> BTreeSet<&'a str> {
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
