//! Corrects the programs' counts of each client's connections, if `limits.per_client` is set.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use lb_common::{
    address::V6,
    maps::{Settings, name},
};

use super::named_map::HashTable;

/// The counts at the time before the tables are read.
pub(super) struct ClientCounts {
    /// `None` without `limits.per_client`.
    map: Option<HashTable<V6, u64>>,
    before: BTreeMap<V6, u64>,
}

impl ClientCounts {
    pub fn read(pin_path: &Path, settings: &Settings) -> Result<Self> {
        if settings.per_client == 0 {
            return Ok(Self {
                map: None,
                before: BTreeMap::new(),
            });
        }
        let map = HashTable::open(pin_path, name::CLIENTS)?;
        let before = map.iter().filter_map(Result::ok).collect();
        Ok(Self {
            map: Some(map),
            before,
        })
    }

    /// Corrects each count by its difference from the connections that were `present` at that time.
    pub fn correct(&mut self, present: &BTreeMap<V6, Present>) -> Result<()> {
        let Some(map) = &mut self.map else {
            return Ok(());
        };
        let absent = self.before.keys().filter(|it| !present.contains_key(*it));
        for client in present.keys().chain(absent) {
            let before = self.before.get(client).copied().unwrap_or(0);
            let Present { old, new } = present.get(client).copied().unwrap_or_default();
            let now = map.get(client).unwrap_or(0);
            match corrected(before, old, now) {
                0 if new == 0 => {
                    // It may have been evicted meanwhile.
                    _ = map.remove(client);
                }
                count if count != now => map.insert(*client, count)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Connections that the programs count and that the tables have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Present {
    pub old: u64,
    /// Begun after the count started, so not in the former value of the count.
    pub new: u64,
}

impl Present {
    pub fn add(&mut self, is_new: bool) {
        match is_new {
            true => self.new += 1,
            false => self.old += 1,
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            old: self.old + other.old,
            new: self.new + other.new,
        }
    }
}

/// Returns the count `now`, less the connections that were counted `before` but are not among the `old` ones. Counts
/// below 0, of an evicted entry, wrap around.
fn corrected(before: u64, old: u64, now: u64) -> u64 {
    let count = now.wrapping_add(old).wrapping_sub(before);
    count.cast_signed().max(0).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::corrected;

    #[test]
    fn subtracts_ended_connections_and_keeps_new_ones() {
        assert_eq!(corrected(10, 7, 12), 9);
        // The entry was evicted and created again.
        assert_eq!(corrected(0, 7, 2), 9);
        assert_eq!(corrected(u64::MAX, 7, u64::MAX), 7);
        assert_eq!(corrected(10, 0, 3), 0);
    }
}
