//! All entries of an array by one system call: one for each entry takes an emulated processor most of its time.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Pod,
    maps::{Array, IterableMap, MapData, PerCpuArray},
    util::nr_cpus,
};
use nix::libc;

/// Linux 5.6 (cb4d03ab499d); for per-CPU arrays 5.13 (f008d732ab18).
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// The part of `union bpf_attr` that the command uses.
#[repr(C)]
struct Request {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The entries of an array, in their order.
pub fn of<V: Pod>(array: &Array<MapData, V>) -> Vec<V> {
    read(array.map(), array.len(), 1).unwrap()
}

/// The entries of a per-CPU array, in their order, each as the `sum` of its values.
pub fn sums<V: Pod>(array: &PerCpuArray<MapData, V>, sum: impl Fn(&[V]) -> V) -> Vec<V> {
    assert_eq!(size_of::<V>() % 8, 0, "the kernel pads each CPU's value");
    let cpus = nr_cpus().unwrap();
    let values = read(array.map(), array.len(), cpus).unwrap();
    values.chunks(cpus).map(sum).collect()
}

fn read<V: Pod>(map: &MapData, entries: u32, values_each: usize) -> io::Result<Vec<V>> {
    let (mut next, mut keys) = (0_u32, vec![0_u32; entries as usize]);
    let mut values = Vec::<V>::with_capacity(entries as usize * values_each);
    let mut request = Request {
        from: 0,
        next: (&raw mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: entries,
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the request's pointers are to memory for as many keys and values, which outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut request,
            size_of::<Request>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    assert_eq!(request.count, entries, "an array has all its entries");
    // SAFETY: the kernel has written as many values, and every bit pattern is one (`Pod`).
    unsafe { values.set_len(entries as usize * values_each) };
    Ok(values)
}
