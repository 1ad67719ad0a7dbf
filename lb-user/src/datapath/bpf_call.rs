//! The system call bpf(2), for what aya does not offer.

use std::io;

use nix::libc;

pub const BPF_OBJ_GET: libc::c_int = 7;
pub const BPF_PROG_TEST_RUN: libc::c_int = 10;
pub const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub const BPF_PROG_QUERY: libc::c_int = 16;
pub const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Executes a command with `request`, the part of `union bpf_attr` that the command uses.
pub fn bpf<T>(command: libc::c_int, request: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel accesses only the request and what its fields point to. Both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *request, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
