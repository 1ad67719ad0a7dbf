//! The UDP socket for heartbeats. It has a large receive buffer, and replies leave from the address that received.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
        recvmsg, sendmsg, setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo, RcvBuf, RcvBufForce, RxqOvfl},
    },
};
use tokio::{io::Interest, net::UdpSocket};
use tracing::debug;

use crate::{dual_stack::both_families, sockets::udp_holder};

/// The size of the receive buffer. A flood of small datagrams fills the kernel's default of 208 KiB in milliseconds,
/// and heartbeats would be lost with the rest.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// A datagram's source and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramPath {
    /// The source. It is an IPv4 address also if the socket serves both families.
    pub from: SocketAddr,
    /// The manager's address that received the datagram. If the manager has several addresses, the kernel might reply
    /// from another one, and a firewall on the worker would drop that.
    to: IpAddr,
}

#[cfg(test)]
impl DatagramPath {
    /// The path from this port of a worker.
    pub(super) fn example(port: u16) -> Self {
        Self {
            from: ([192, 168, 56, 103], port).into(),
            to: Ipv4Addr::new(192, 168, 56, 101).into(),
        }
    }
}

/// The UDP socket of heartbeats.
#[derive(Debug)]
pub struct HeartbeatSocket {
    socket: UdpSocket,
    is_ipv6: bool,
    /// The buffer of control messages: the destination address, and the number of dropped datagrams.
    control: Vec<u8>,
    /// The last value of the kernel's counter of dropped datagrams.
    overflowed: u32,
    /// Dropped datagrams since the last call of [`HeartbeatSocket::overflowed`].
    unreported: u64,
}

impl HeartbeatSocket {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// Says why the address cannot be used, and what to do.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let socket = bind(address).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    ": {}; stop it, or choose another address with --heartbeat-listen",
                    udp_holder(address).in_use()
                ),
                io::ErrorKind::AddrNotAvailable => {
                    ": this machine does not have that address now; see --heartbeat-listen. An address that \
                     moves between managers cannot receive a standby's heartbeats"
                        .to_owned()
                }
                _ => String::new(),
            };
            anyhow::anyhow!("receive heartbeats at UDP {address}: {error}{hint}")
        })?;
        let requested = match address {
            SocketAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true),
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true),
        };
        requested.context("request the destination address of heartbeats")?;
        setsockopt(&socket, RxqOvfl, &1).context("request the count of dropped heartbeats")?;
        // CAP_NET_ADMIN allows more than the system's limit.
        let forced = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES);
        if let Err(error) = forced.or_else(|_| setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER_BYTES)) {
            debug!("enlarge the receive buffer for heartbeats: {error}");
        }
        Ok(Self {
            socket,
            is_ipv6: address.is_ipv6(),
            control: cmsg_space!(libc::in6_pktinfo, u32),
            overflowed: 0,
            unreported: 0,
        })
    }

    /// Waits until a datagram may be waiting.
    ///
    /// # Errors
    ///
    /// Returns the error of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Returns the number of datagrams that the kernel dropped since the last call because the queue was full. The
    /// kernel reports it with the next datagram that fits.
    pub fn overflowed(&mut self) -> u64 {
        mem::take(&mut self.unreported)
    }

    /// Receives the next datagram without waiting; what does not fit into `buffer` is cut off.
    ///
    /// # Errors
    ///
    /// `WouldBlock` means that no datagram is waiting.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, DatagramPath)> {
        let Self {
            socket,
            control,
            overflowed,
            unreported,
            ..
        } = self;
        socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut parts,
                Some(control),
                MsgFlags::empty(),
            )?;
            let mut to = None;
            for control in message.cmsgs()? {
                match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                        to = Some(address.into());
                    }
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                    }
                    ControlMessageOwned::RxqOvfl(count) => {
                        *unreported += u64::from(count.wrapping_sub(*overflowed));
                        *overflowed = count;
                    }
                    _ => {}
                }
            }
            let from = message.address.as_ref().and_then(socket_address);
            let path = DatagramPath {
                from: from
                    .ok_or_else(|| io::Error::other("a datagram without a source address"))?,
                to: to.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            };
            Ok((message.bytes, path))
        })
    }

    /// Sends a reply from the address that received the datagram. If that would block, the reply is dropped.
    pub fn reply(&self, path: DatagramPath, datagram: &[u8]) {
        let sent = (self.socket).try_io(Interest::WRITABLE, || self.send(path, datagram));
        if let Err(error) = sent {
            debug!("reply to a heartbeat of {}: {error}", path.from);
        }
    }

    fn send(&self, path: DatagramPath, datagram: &[u8]) -> io::Result<usize> {
        let (fd, parts) = (self.socket.as_raw_fd(), [IoSlice::new(datagram)]);
        let flags = MsgFlags::empty();
        let sent = match (path.from, path.to) {
            (SocketAddr::V4(from), IpAddr::V4(to)) if !self.is_ipv6 => {
                let source = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(to).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&source)];
                sendmsg(fd, &parts, &control, flags, Some(&SockaddrIn::from(from)))
            }
            (from, to) => {
                let source = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: as_ipv6(to).octets(),
                    },
                    ipi6_ifindex: 0,
                };
                let control = [ControlMessage::Ipv6PacketInfo(&source)];
                let from = match from {
                    SocketAddr::V6(from) => from,
                    SocketAddr::V4(_) => SocketAddrV6::new(as_ipv6(from.ip()), from.port(), 0, 0),
                };
                sendmsg(fd, &parts, &control, flags, Some(&SockaddrIn6::from(from)))
            }
        };
        Ok(sent?)
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => std::net::UdpSocket::bind(address)?,
        SocketAddr::V6(_) => both_families(address)?,
    };
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(SocketAddr::from(*address));
    }
    let address = SocketAddr::from(*address.as_sockaddr_in6()?);
    Some(match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // With the scope id of a link-local address.
        IpAddr::V6(_) => address,
    })
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a heartbeat to `manager`, and expects the reply from there.
    async fn exchange(socket: &mut HeartbeatSocket, manager: SocketAddr) {
        let any = match manager {
            SocketAddr::V4(_) => "127.0.0.1:0",
            SocketAddr::V6(_) => "[::1]:0",
        };
        let agent = UdpSocket::bind(any).await.unwrap();
        agent.send_to(b"heartbeat", manager).await.unwrap();
        let mut buffer = [0; 64];
        let (length, path) = loop {
            socket.readable().await.unwrap();
            match socket.receive(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => break received.unwrap(),
            }
        };
        assert_eq!(&buffer[..length], b"heartbeat");
        assert_eq!(path.from, agent.local_addr().unwrap());
        assert_eq!(path.to, manager.ip());
        socket.reply(path, b"reply");
        let (length, from) = agent.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"reply"[..], manager));
    }

    #[tokio::test]
    async fn replies_from_the_address_that_received() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let mut socket = HeartbeatSocket::bind(any.parse().unwrap()).unwrap();
            let port = socket.socket.local_addr().unwrap().port();
            // By itself the kernel would answer the first of them from 127.0.0.1.
            for last in [7, 1] {
                exchange(&mut socket, ([127, 0, 0, last], port).into()).await;
            }
            if socket.is_ipv6 {
                exchange(&mut socket, (Ipv6Addr::LOCALHOST, port).into()).await;
            }
        }
    }

    #[tokio::test]
    async fn counts_what_does_not_fit_into_the_queue() {
        let mut socket = HeartbeatSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        setsockopt(&socket.socket, RcvBuf, &4_096).unwrap();
        let agent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        agent.connect(socket.socket.local_addr().unwrap()).unwrap();
        let mut read = 0;
        let mut lost = 0;
        for _ in 0..2 {
            for _ in 0..100 {
                agent.send(&[0; 1_000]).unwrap();
            }
            let mut buffer = [0; 1_000];
            socket.readable().await.unwrap();
            while socket.receive(&mut buffer).is_ok() {
                read += 1;
            }
            agent.send(b"the next one that fits").unwrap();
            socket.readable().await.unwrap();
            socket.receive(&mut buffer).unwrap();
            lost += socket.overflowed();
            assert_eq!(socket.overflowed(), 0);
        }
        assert!(lost > 0);
        assert_eq!(read + lost, 200);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_gives_a_remedy() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let error = HeartbeatSocket::bind(taken.local_addr().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("another manager"), "{error}");
        let elsewhere = ([203, 0, 113, 1], 9999).into();
        let error = HeartbeatSocket::bind(elsewhere).unwrap_err().to_string();
        assert!(error.contains("does not have that address"), "{error}");
    }
}
