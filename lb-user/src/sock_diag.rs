//! Looks up single TCP sockets by the kernel's `sock_diag`, without reading the whole table of sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use lb_common::headers::PROTOCOL_TCP;
use nix::libc;
use rtnetlink::{
    packet_core::NLM_F_REQUEST,
    sys::{self, Socket, protocols::NETLINK_SOCK_DIAG},
};

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST_BYTES: u32 = 16 + 56;
/// Offsets in a reply: the type of `struct nlmsghdr`, the error of `struct nlmsgerr`, the state of
/// `struct inet_diag_msg`.
const TYPE_AT: usize = 4;
const ERROR_AT: usize = 16;
const STATE_AT: usize = 17;

/// TCP's states (net/tcp_states.h) in which a socket has no connection.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// The kernel's socket for a pair of TCP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpSocket {
    /// The socket of an open connection.
    Connected,
    /// A listening socket, and no connection.
    Listener,
    /// No socket in this network namespace.
    None,
}

/// A netlink socket for look-ups.
pub struct SockDiag(Socket);

impl SockDiag {
    /// # Errors
    ///
    /// The kernel's error.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&sys::SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Returns the socket of the connection from `remote` to `local`. Does not block: the kernel replies within the
    /// call.
    ///
    /// # Errors
    ///
    /// The kernel's error, for example because it has no `tcp_diag`.
    pub fn tcp(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<TcpSocket> {
        self.0.send(&request(local, remote), 0)?;
        let (reply, _) = self.0.recv_from_full()?;
        parse(&reply)
    }
}

fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port number.
    request.extend([0; 8]);
    let family = match local.is_ipv4() {
        true => libc::AF_INET,
        false => libc::AF_INET6,
    };
    request.extend([family as u8, PROTOCOL_TCP, 0, 0]);
    // All states.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        match address {
            IpAddr::V4(address) => {
                request.extend(address.octets());
                request.extend([0; 12]);
            }
            IpAddr::V6(address) => request.extend(address.octets()),
        }
    }
    // Any interface; any cookie (`INET_DIAG_NOCOOKIE`).
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}

fn parse(reply: &[u8]) -> io::Result<TcpSocket> {
    let truncated = || io::Error::other("a reply of sock_diag is truncated");
    let kind = reply.get(TYPE_AT..).and_then(<[u8]>::first_chunk);
    if u16::from_ne_bytes(*kind.ok_or_else(truncated)?) == NLMSG_ERROR {
        let error = reply.get(ERROR_AT..).and_then(<[u8]>::first_chunk);
        let code = i32::from_ne_bytes(*error.ok_or_else(truncated)?);
        let error = io::Error::from_raw_os_error(-code);
        return match error.kind() {
            io::ErrorKind::NotFound => Ok(TcpSocket::None),
            _ => Err(error),
        };
    }
    Ok(match reply.get(STATE_AT).ok_or_else(truncated)? {
        &(LISTEN | CLOSE | TIME_WAIT) => TcpSocket::Listener,
        _ => TcpSocket::Connected,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn finds_a_connection_a_listener_and_neither() {
        let sockets = SockDiag::open().unwrap();
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(any).unwrap();
            let local = server.local_addr().unwrap();
            let client = TcpStream::connect(local).unwrap();
            let remote = client.local_addr().unwrap();
            let (accepted, _) = server.accept().unwrap();
            assert_eq!(sockets.tcp(local, remote).unwrap(), TcpSocket::Connected);
            let other = SocketAddr::new(remote.ip(), remote.port() ^ 1);
            assert_eq!(sockets.tcp(local, other).unwrap(), TcpSocket::Listener);
            drop(server);
            assert_eq!(sockets.tcp(local, other).unwrap(), TcpSocket::None);
            assert_eq!(sockets.tcp(local, remote).unwrap(), TcpSocket::Connected);
            drop(accepted);
        }
    }

    #[test]
    fn refuses_a_truncated_reply() {
        for length in 0..STATE_AT {
            assert!(parse(&vec![0; length]).is_err());
        }
    }
}
