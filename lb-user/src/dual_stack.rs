//! UDP sockets for both address families.

use std::{io, net, net::SocketAddr, os::fd::AsRawFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt::Ipv6V6Only,
};

/// Opens a socket at an IPv6 address; at `[::]` it carries IPv4, too, whatever the system's default
/// (`net.ipv6.bindv6only`).
///
/// # Errors
///
/// The kernel's error.
pub fn both_families(address: SocketAddr) -> io::Result<net::UdpSocket> {
    let socket = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, Ipv6V6Only, &false)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket.into())
}
