//! Interface and program of pinned BPF links, and the tcx programs of an interface. aya does not expose them.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::bpf_call::{BPF_OBJ_GET, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY, bpf};

/// `enum bpf_attach_type`.
const BPF_TCX_INGRESS: u32 = 46;

/// The most programs at one hook (`BPF_MPROG_MAX`).
const MAX_PROGRAMS: usize = 64;

/// `struct bpf_link_info` as far as XDP and tcx use it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    interface: u32,
    attach_type: u32,
}

/// The part of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoGet {
    fd: u32,
    length: u32,
    info: u64,
}

/// Returns the index of the interface of the link pinned at `path`; `None` if the link is detached, if the interface
/// is gone, or if nothing is pinned.
///
/// # Errors
///
/// The pin cannot be opened or is not a link.
///
/// # Minimum kernel version
///
/// Linux 5.8 (f2e10bff16a0).
pub fn interface_of(path: &Path) -> io::Result<Option<u32>> {
    let info = read(path)?;
    Ok(info.map(|it| it.interface).filter(|it| *it != 0))
}

/// Returns the id of the program of the link pinned at `path`; `None` if nothing is pinned.
///
/// # Errors
///
/// The pin cannot be opened or is not a link.
pub fn program_of(path: &Path) -> io::Result<Option<u32>> {
    Ok(read(path)?.map(|it| it.program))
}

/// Returns the ids of the tcx ingress programs of an interface, in the order in which they run. Needs `CAP_NET_ADMIN`
/// only.
///
/// # Errors
///
/// The kernel's error.
///
/// # Minimum kernel version
///
/// Linux 6.6 (e420bed02507).
pub fn ingress_programs(interface: u32) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; MAX_PROGRAMS];
    let mut request = ProgramQuery {
        interface,
        attach_type: BPF_TCX_INGRESS,
        programs: programs.as_mut_ptr().expose_provenance() as u64,
        count: MAX_PROGRAMS as u32,
        ..ProgramQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut request)?;
    programs.truncate(request.count as usize);
    Ok(programs)
}

fn read(path: &Path) -> io::Result<Option<LinkInfo>> {
    let link = match open(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut info = LinkInfo::default();
    let mut request = InfoGet {
        fd: link.as_raw_fd().cast_unsigned(),
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request)?;
    Ok(Some(info))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut request = ObjectGet {
        path: path.as_ptr().expose_provenance() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &mut request)?;
    // SAFETY: the kernel has just opened it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
