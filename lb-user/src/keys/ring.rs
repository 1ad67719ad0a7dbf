//! The keys that a manager knows.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{Key, KeyId};

/// How many keys of one worker hold at a time: the one in use and the one that replaces it.
pub const KEYS_PER_WORKER: usize = 2;

/// Keys by their ids.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, Key>,
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
            anyhow::bail!(
                "{place}: the key {id} is there twice (of {}): remove one of its files",
                other.worker()
            );
        }
        let held = self.of_worker(worker).count();
        ensure!(
            held < KEYS_PER_WORKER,
            "{place}: {worker} has {KEYS_PER_WORKER} keys already: remove the file of the one that \
             its agent uses no longer"
        );
        self.keys.insert(id, key);
        Ok(())
    }

    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
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
