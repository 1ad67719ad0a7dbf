//! Captures the frames that leave by an interface.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use nix::libc;

use crate::frame::at;

/// How long a frame is waited for, in seconds.
const PATIENCE_S: libc::time_t = 5;

pub struct Sniffer(OwnedFd);

/// A frame without its outermost tag, and that tag's control information.
#[derive(Debug, PartialEq, Eq)]
pub struct Sniffed {
    pub frame: Vec<u8>,
    pub tag: Option<u16>,
}

impl Sniffer {
    /// Listens on the interface with this index, in the namespace of this thread.
    pub fn on(interface: u32) -> io::Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: integers only; the descriptor is this one's alone.
        let socket = unsafe {
            let socket = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0))?;
            OwnedFd::from_raw_fd(socket)
        };
        let sniffer = Self(socket);
        sniffer.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
        let patience = libc::timeval {
            tv_sec: PATIENCE_S,
            tv_usec: 0,
        };
        sniffer.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
        // SAFETY: all zeros are a link address; the kernel reads as many bytes as it has.
        unsafe {
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = all;
            address.sll_ifindex = i32::try_from(interface).unwrap();
            checked(libc::bind(
                sniffer.0.as_raw_fd(),
                (&raw const address).cast(),
                length_of(&address),
            ))?;
        }
        Ok(sniffer)
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as the value has.
        checked(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                ptr::from_ref(value).cast(),
                length_of(value),
            )
        })?;
        Ok(())
    }

    /// The next frame that arrives here for one station; what the kernel says to all by itself is
    /// none.
    pub fn next(&self) -> io::Result<Sniffed> {
        loop {
            let sniffed = self.any()?;
            if sniffed.frame[at::DESTINATION_MAC] & 1 == 0 {
                return Ok(sniffed);
            }
        }
    }

    fn any(&self) -> io::Result<Sniffed> {
        let mut frame = vec![0_u8; 4_096];
        let mut control = [0_u64; 16];
        // SAFETY: the kernel writes no further than the lengths say, and all buffers outlive the call;
        // a control message of this level and type carries what it is read as.
        unsafe {
            let mut part = libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            };
            let mut message: libc::msghdr = mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let received = libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0);
            let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
            frame.truncate(received);
            let mut tag = None;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            if let Some(header) = header.as_ref()
                && (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
            {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                let beside = data.read_unaligned();
                if beside.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                    tag = Some(beside.tp_vlan_tci);
                }
            }
            Ok(Sniffed { frame, tag })
        }
    }
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    u32::try_from(size_of_val(value)).unwrap()
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
