//! Reading of many entries of a map by one system call.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{Pod, maps::MapData};
use nix::libc;

use super::bpf_call::{BPF_MAP_LOOKUP_BATCH, bpf};

/// The part of `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Replaces the contents of `keys` and `values` by about `limit` entries of a map, from a position on. An entry has
/// `values_each` values: one, or one for each processor. Returns the next position; `None` at the end.
///
/// # Safety
///
/// The map must have keys of type `K`, and `values_each` values of type `V` in each entry.
///
/// # Errors
///
/// The kernel's error, for example because it cannot read this type of map in batches.
///
/// # Minimum kernel version
///
/// Linux 5.6 (cb4d03ab499d); 5.13 for per-CPU arrays (f008d732ab18).
pub unsafe fn lookup_batch<K: Pod, V: Pod>(
    map: &MapData,
    from: Option<u32>,
    mut limit: usize,
    values_each: usize,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<Option<u32>> {
    loop {
        keys.clear();
        keys.reserve(limit);
        values.clear();
        values.reserve(limit * values_each);
        let (start, mut next) = (from.unwrap_or(0), 0_u32);
        let mut batch = Batch {
            from: from.map_or(0, |_| (&raw const start).expose_provenance() as u64),
            next: (&raw mut next).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(limit).unwrap_or(u32::MAX),
            map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        let next = match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => Some(next),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => None,
                // A bucket has more entries than the buffers hold.
                Some(libc::ENOSPC) => {
                    limit *= 2;
                    continue;
                }
                _ => return Err(error),
            },
        };
        let read = batch.count as usize;
        if read > limit {
            return Err(io::Error::other(
                "the kernel returned more entries than requested",
            ));
        }
        // SAFETY: the kernel has written that many keys and values, and every bit pattern is a value (`Pod`).
        unsafe {
            keys.set_len(read);
            values.set_len(read * values_each);
        }
        return Ok(next);
    }
}
