//! Maps with their names, for errors that say which map failed.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::layout::open_map;

/// A map with its name.
pub struct NamedMap<M> {
    name: &'static str,
    map: M,
}

pub type ArrayMap<V> = NamedMap<Array<MapData, V>>;
pub type PerCpuMap<V> = NamedMap<PerCpuArray<MapData, V>>;
pub type HashTable<K, V> = NamedMap<HashMap<MapData, K, V>>;
pub type RingMap = NamedMap<RingBuf<MapData>>;

impl<M> fmt::Debug for NamedMap<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map {}", self.name)
    }
}

impl<M> Deref for NamedMap<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.map
    }
}

impl<M> DerefMut for NamedMap<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.map
    }
}

impl<M: AsRawFd> AsRawFd for NamedMap<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}

impl<M: TryFrom<Map, Error = MapError>> NamedMap<M> {
    /// Returns a map of loaded programs. Each can be requested once.
    pub fn from_ebpf(ebpf: &mut Ebpf, name: &'static str) -> Result<Self> {
        let map = ebpf.take_map(name);
        Self::new(
            name,
            map.with_context(|| format!("the kernel programs have no map {name}"))?,
        )
    }

    /// Opens a map that a manager has pinned.
    pub fn open(pin_path: &Path, name: &'static str) -> Result<Self> {
        let data = open_map(pin_path, name)?;
        Self::new(name, Map::from_map_data(data)?)
    }

    fn new(name: &'static str, map: Map) -> Result<Self> {
        let map = M::try_from(map).with_context(|| format!("open map {name}"))?;
        Ok(Self { name, map })
    }
}

impl RingMap {
    /// Opens a pinned ring and registers it with the tokio runtime.
    pub fn open_async(pin_path: &Path, name: &'static str) -> Result<AsyncFd<Self>> {
        let ring = Self::open(pin_path, name)?;
        // SAFETY: the ring owns its descriptor for its lifetime and is not replaced.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        ring.with_context(|| format!("poll map {name}"))
    }
}

impl<V: Pod> ArrayMap<V> {
    pub fn get(&self, index: u32) -> Result<V> {
        let value = self.map.get(&index, 0);
        value.with_context(|| format!("read entry {index} of map {}", self.name))
    }

    pub fn set(&mut self, index: u32, value: V) -> Result<()> {
        let written = self.map.set(index, value, 0);
        written.with_context(|| format!("write entry {index} of map {}", self.name))
    }

    /// Returns all values, by index.
    pub fn values(&self) -> impl Iterator<Item = Result<V>> {
        let values = self.map.iter();
        values.map(|value| value.with_context(|| format!("read map {}", self.name)))
    }
}

impl<V: Pod> PerCpuMap<V> {
    /// Returns the values of all processors.
    pub fn get(&self, index: u32) -> Result<PerCpuValues<V>> {
        let values = self.map.get(&index, 0);
        values.with_context(|| format!("read entry {index} of map {}", self.name))
    }
}

impl<K: Pod, V: Pod> HashTable<K, V> {
    /// Returns a value; `None` also if the map cannot be read.
    pub fn get(&self, key: &K) -> Option<V> {
        self.map.get(key, 0).ok()
    }

    pub fn insert(&mut self, key: K, value: V) -> Result<()> {
        let written = self.map.insert(key, value, 0);
        written.with_context(|| format!("write map {}", self.name))
    }

    pub fn remove(&mut self, key: &K) -> Result<()> {
        let removed = self.map.remove(key);
        removed.with_context(|| format!("remove an entry of map {}", self.name))
    }

    /// Removes the entries whose keys are not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) -> Result<()> {
        let present: Vec<K> = self.map.keys().filter_map(Result::ok).collect();
        let mut stale = present.iter().filter(|key| !wanted(key));
        stale.try_for_each(|key| self.remove(key))
    }

    pub fn entries(&self) -> impl Iterator<Item = Result<(K, V)>> {
        let entries = self.map.iter();
        entries.map(|entry| entry.with_context(|| format!("read map {}", self.name)))
    }
}
