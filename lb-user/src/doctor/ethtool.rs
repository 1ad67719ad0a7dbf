//! What a driver says of its interface, by the kernel's ethtool call.

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

/// The length of `struct ethtool_drvinfo`, and where in it the driver's name stands.
const DRIVER_INFO_BYTES: usize = 196;
const DRIVER_NAME: std::ops::Range<usize> = 4..36;

/// Returns the driver's name, such as `virtio_net` or `ixgbe`.
pub fn driver(interface: &str) -> Option<String> {
    let mut info = [0; DRIVER_INFO_BYTES];
    info[..4].copy_from_slice(&GET_DRIVER_INFO.to_ne_bytes());
    ask(interface, &mut info)?;
    let name = CStr::from_bytes_until_nul(&info[DRIVER_NAME]).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Says whether received packets are merged beyond recognition (LRO); nothing if the driver does not say.
pub fn large_receive_offload(interface: &str) -> Option<bool> {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&GET_FLAGS.to_ne_bytes());
    ask(interface, &mut value)?;
    let flags = u32::from_ne_bytes(value[4..].try_into().ok()?);
    Some(flags & FLAG_LRO != 0)
}

/// `struct ifreq` as this call uses it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u8,
    rest: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - size_of::<*mut u8>()],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// Has the kernel fill in `command`, which begins with its number.
fn ask(interface: &str, command: &mut [u8]) -> Option<()> {
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        data: command.as_mut_ptr(),
        rest: [0; _],
    };
    // Room for the zero that ends it.
    let name = request.name[..libc::IFNAMSIZ - 1].get_mut(..interface.len())?;
    name.copy_from_slice(interface.as_bytes());
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    // SAFETY: the request is laid out as the kernel expects it, and its pointer is to a buffer as
    // long as the command's structure, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    (answer == 0).then_some(())
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
