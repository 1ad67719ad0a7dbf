//! This machine's sockets and their processes, so that messages can name the process that uses a port.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use procfs::{
    Current,
    net::TcpState,
    process::{FDTarget, Process, all_processes},
};

/// A TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSocket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub is_listening: bool,
}

/// Returns the TCP sockets of both families, except those in TIME_WAIT.
///
/// # Errors
///
/// The kernel's error.
pub fn tcp() -> Result<Vec<OpenSocket>> {
    let sockets = procfs::net::tcp().context("read /proc/net/tcp")?;
    // A kernel without IPv6 has no such file.
    let further = procfs::net::tcp6().unwrap_or_default();
    let all = sockets.into_iter().chain(further);
    let all = all.filter(|socket| socket.state != TcpState::TimeWait);
    Ok(all
        .map(|socket| OpenSocket {
            local: socket.local_address,
            remote: socket.remote_address,
            is_listening: socket.state == TcpState::Listen,
        })
        .collect())
}

/// Returns the local addresses of the sockets that listen at this port.
pub fn listeners(sockets: &[OpenSocket], port: u16) -> Vec<IpAddr> {
    let listening = sockets
        .iter()
        .filter(|socket| socket.is_listening && socket.local.port() == port);
    let mut addresses: Vec<IpAddr> = listening.map(|socket| socket.local.ip()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Whether all listeners have loopback addresses.
pub fn is_only_local(listeners: &[IpAddr]) -> bool {
    !listeners.is_empty() && listeners.iter().all(IpAddr::is_loopback)
}

/// A process that holds a socket, a lock or pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// The program's own name, cut to 15 bytes by the kernel.
    pub program: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.program, self.pid)
    }
}

impl Holder {
    /// Names the process and how long it has run.
    pub fn with_age(&self) -> String {
        match self.age() {
            Some(age) => format!("{self}, for {}", humantime::format_duration(age)),
            None => self.to_string(),
        }
    }

    /// Returns how long the process has run, in whole seconds.
    pub fn age(&self) -> Option<Duration> {
        let started = Process::new(self.pid).ok()?.stat().ok()?.starttime;
        let started = Duration::from_secs(started / procfs::ticks_per_second());
        let uptime = procfs::Uptime::current().ok()?.uptime_duration();
        Some(Duration::from_secs(
            uptime.saturating_sub(started).as_secs(),
        ))
    }
}

/// The process that receives the datagrams to a UDP port, or the connections to a TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortHolder {
    /// No process: the port is free.
    Free,
    Known(Holder),
    /// A process whose sockets this user may not see.
    Unknown,
}

impl PortHolder {
    /// Says who uses the port, in the error of a socket that cannot be bound there.
    pub fn in_use(&self) -> String {
        let holder = match self {
            Self::Known(holder) => holder.to_string(),
            Self::Free | Self::Unknown => "another process".to_owned(),
        };
        format!("the port is in use by {holder}, perhaps another manager")
    }
}

/// Returns the process that has bound a UDP port at this address, or at one that includes it.
pub fn udp_holder(address: SocketAddr) -> PortHolder {
    let v4 = procfs::net::udp().unwrap_or_default().into_iter();
    let sockets = v4.chain(procfs::net::udp6().unwrap_or_default());
    holder_among(sockets.map(|it| (it.local_address, it.inode)), address)
}

/// Returns the process that listens at a TCP port at this address, or at one that includes it.
pub fn tcp_holder(address: SocketAddr) -> PortHolder {
    let v4 = procfs::net::tcp().unwrap_or_default().into_iter();
    let sockets = v4.chain(procfs::net::tcp6().unwrap_or_default());
    let listening = sockets.filter(|it| it.state == TcpState::Listen);
    holder_among(listening.map(|it| (it.local_address, it.inode)), address)
}

fn holder_among(
    mut sockets: impl Iterator<Item = (SocketAddr, u64)>,
    wanted: SocketAddr,
) -> PortHolder {
    let found = sockets.find(|(own, _)| {
        let (own_ip, ip) = (own.ip(), wanted.ip());
        let overlaps = own_ip == ip || own_ip.is_unspecified() || ip.is_unspecified();
        own.port() == wanted.port() && overlaps
    });
    match found {
        None => PortHolder::Free,
        Some((_, inode)) => holder_of(inode).map_or(PortHolder::Unknown, PortHolder::Known),
    }
}

/// Returns the process with this id.
pub fn holder(pid: i32) -> Option<Holder> {
    let program = Process::new(pid).ok()?.stat().ok()?.comm;
    Some(Holder { pid, program })
}

fn holder_of(inode: u64) -> Option<Holder> {
    // Processes may end meanwhile, and some may not be read.
    let mut processes = all_processes().ok()?.flatten();
    let process = processes.find(|process| {
        let mut files = process.fd().into_iter().flatten().flatten();
        files.any(|file| matches!(file.target, FDTarget::Socket(it) if it == inode))
    })?;
    holder(process.pid)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn finds_the_process_that_has_a_port() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = i32::try_from(std::process::id()).unwrap();
        for asked in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
            let PortHolder::Known(holder) = udp_holder((asked, port).into()) else {
                panic!("this process has it");
            };
            assert_eq!(holder.pid, own);
            assert!(!holder.program.is_empty());
        }
        drop(socket);
        let address = (Ipv4Addr::LOCALHOST, port).into();
        assert_eq!(udp_holder(address), PortHolder::Free);

        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holder = holder(own).unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        assert_eq!(tcp_holder(address), PortHolder::Known(holder));
    }
}
