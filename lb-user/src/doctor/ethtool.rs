//! Driver and offloads of an interface, by the kernel's ethtool call.

use std::{
    ffi::CStr,
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

// linux/sockios.h and linux/ethtool.h
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GET_DRIVER_INFO: u32 = 0x3;
const GET_FLAGS: u32 = 0x25;
const FLAG_LRO: u32 = 1 << 15;

/// The length of `struct ethtool_drvinfo`, and the position of the driver's name.
const DRIVER_INFO_BYTES: usize = 196;
const DRIVER_NAME: std::ops::Range<usize> = 4..36;

/// Returns the driver's name, such as `virtio_net` or `ixgbe`.
pub fn driver(interface: &str) -> Option<String> {
    let mut info = [0; DRIVER_INFO_BYTES];
    info[..4].copy_from_slice(&GET_DRIVER_INFO.to_ne_bytes());
    execute(interface, &mut info)?;
    let name = CStr::from_bytes_until_nul(&info[DRIVER_NAME]).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Whether large receive offload merges received packets; `None` if the driver does not report it.
pub fn large_receive_offload(interface: &str) -> Option<bool> {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&GET_FLAGS.to_ne_bytes());
    execute(interface, &mut value)?;
    let flags = u32::from_ne_bytes(value[4..].try_into().ok()?);
    Some(flags & FLAG_LRO != 0)
}

/// `struct ifreq` as this call uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u8,
    rest: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - size_of::<*mut u8>()],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// Executes an ethtool command: the buffer begins with its number, and the kernel fills in the rest.
fn execute(interface: &str, command: &mut [u8]) -> Option<()> {
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        data: command.as_mut_ptr(),
        rest: [0; _],
    };
    // The last byte stays 0.
    let name = request.name[..libc::IFNAMSIZ - 1].get_mut(..interface.len())?;
    name.copy_from_slice(interface.as_bytes());
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    // SAFETY: the request has the layout of `struct ifreq`, and points to a buffer with the length of the command's
    // structure, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    (result == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_features_of_existing_interfaces() {
        // Loopback has no driver, but the flags of every interface.
        assert_eq!(large_receive_offload("lo"), Some(false));
        assert_eq!(large_receive_offload("no-such-if"), None);
        assert_eq!(driver("a-name-far-too-long-for-an-interface"), None);
        assert_eq!(driver(""), None);
    }
}
