//! All entries of an array by one system call: one for each entry takes an emulated processor most of its time.

use aya::{
    Pod,
    maps::{Array, IterableMap, MapData, PerCpuArray},
    util::nr_cpus,
};
use memlb::datapath::lookup_batch;

/// The entries of an array, in their order.
pub fn of<V: Pod>(array: &Array<MapData, V>) -> Vec<V> {
    read(array.map(), array.len(), 1)
}

/// The entries of a per-CPU array, in their order, each as the `sum` of its values.
pub fn sums<V: Pod>(array: &PerCpuArray<MapData, V>, sum: impl Fn(&[V]) -> V) -> Vec<V> {
    assert_eq!(size_of::<V>() % 8, 0, "the kernel pads each CPU's value");
    let cpus = nr_cpus().unwrap();
    let values = read(array.map(), array.len(), cpus);
    values.chunks(cpus).map(sum).collect()
}

fn read<V: Pod>(map: &MapData, entries: u32, values_each: usize) -> Vec<V> {
    let entries = entries as usize;
    let (mut keys, mut values) = (Vec::<u32>::new(), Vec::new());
    // SAFETY: the callers' arrays have such values.
    let read = unsafe { lookup_batch(map, None, entries, values_each, &mut keys, &mut values) };
    read.unwrap();
    assert_eq!(keys.len(), entries, "an array has all its entries");
    values
}
