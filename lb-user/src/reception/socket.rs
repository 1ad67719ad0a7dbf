//! The socket for heartbeats: large enough for a flood, and answering from where it was asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
        sockopt::{Ipv4PacketInfo, RcvBuf, RcvBufForce},
    },
};
use tokio::{io::Interest, net::UdpSocket};
use tracing::debug;

/// What waits while the manager is busy: a flood of small datagrams fills the kernel's usual 208 KiB
/// in milliseconds, and honest heartbeats would be lost with the rest.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// A datagram's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub from: SocketAddrV4,
    /// The manager's own address that was written to. With several of them the kernel might answer
    /// from another one, which a firewall on the worker would not let pass.
    to: Ipv4Addr,
}

/// Where heartbeats arrive.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    /// Where the kernel writes to which address a datagram came.
    control: Vec<u8>,
}

impl Socket {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// Says why the socket cannot be opened, and what to do.
    pub async fn bind(address: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind(address).await.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    ": the port is in use, perhaps by another manager; stop it, or choose another \
                     address with --heartbeat-listen"
                }
                io::ErrorKind::AddrNotAvailable => {
                    ": this machine does not have that address; see --heartbeat-listen"
                }
                _ => "",
            };
            anyhow::anyhow!("receive heartbeats at UDP {address}: {error}{hint}")
        })?;
        setsockopt(&socket, Ipv4PacketInfo, &true)
            .context("ask to which address heartbeats come")?;
        // Beyond the system's limit where that is allowed, else up to it.
        let forced = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES);
        if let Err(error) = forced.or_else(|_| setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER_BYTES)) {
            debug!("enlarge the receive buffer for heartbeats: {error}");
        }
        Ok(Self {
            socket,
            control: cmsg_space!(libc::in_pktinfo),
        })
    }

    /// Waits until a datagram may be there.
    ///
    /// # Errors
    ///
    /// Says why the socket cannot be waited for.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes the next datagram, without waiting; what does not fit into `buffer` is cut off.
    ///
    /// # Errors
    ///
    /// `WouldBlock` says that none is there.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Way)> {
        let Self { socket, control } = self;
        socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrIn>(
                socket.as_raw_fd(),
                &mut parts,
                Some(control),
                MsgFlags::empty(),
            )?;
            let to = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_spec_dst),
                _ => None,
            });
            let from = message.address.map(SocketAddrV4::from);
            let way = Way {
                from: from.ok_or_else(|| io::Error::other("a datagram from nowhere"))?,
                to: to.map_or(Ipv4Addr::UNSPECIFIED, |to| {
                    Ipv4Addr::from(u32::from_be(to.s_addr))
                }),
            };
            Ok((message.bytes, way))
        })
    }

    /// Answers, from the address that was written to; what cannot go out at once is lost.
    pub fn answer(&self, way: Way, datagram: &[u8]) {
        let sent = self.socket.try_io(Interest::WRITABLE, || {
            let source = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(way.to).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let parts = [IoSlice::new(datagram)];
            let to = SockaddrIn::from(way.from);
            let control = [ControlMessage::Ipv4PacketInfo(&source)];
            let fd = self.socket.as_raw_fd();
            Ok(sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&to))?)
        });
        if let Err(error) = sent {
            debug!("acknowledge a heartbeat of {}: {error}", way.from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_from_the_very_address_that_was_written_to() {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let mut socket = Socket::bind(any).await.unwrap();
        let port = socket.socket.local_addr().unwrap().port();
        // By itself the kernel would answer the first of them from 127.0.0.1.
        for last in [7, 1] {
            let manager = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), port);
            let agent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            agent.send_to(b"heartbeat", manager).await.unwrap();
            let mut buffer = [0; 64];
            let (length, way) = loop {
                socket.readable().await.unwrap();
                match socket.receive(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => break received.unwrap(),
                }
            };
            assert_eq!(&buffer[..length], b"heartbeat");
            assert_eq!(way.to, *manager.ip());
            socket.answer(way, b"answer");
            let (length, from) = agent.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (&b"answer"[..], manager.into()));
        }
    }

    #[tokio::test]
    async fn says_what_to_do_about_an_address_that_cannot_be_had() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(address) = taken.local_addr().unwrap() else {
            panic!("an IPv4 socket");
        };
        let error = Socket::bind(address).await.unwrap_err().to_string();
        assert!(error.contains("another manager"), "{error}");
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 9999);
        let error = Socket::bind(elsewhere).await.unwrap_err().to_string();
        assert!(error.contains("does not have that address"), "{error}");
    }
}
