//! The machines of the three-node lab.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
};

use lb_common::maps::{Backend, mode, state};

use crate::frame::{Family, Mac};

/// A machine as its frames show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mac: Mac,
}

impl Station {
    pub fn address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn at(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }
}

/// A server that a backend entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    pub id: u32,
    pub station: Station,
    pub port: u16,
}

pub const CLIENT: Station = station(1);
pub const OTHER_CLIENT: Station = station(2);
/// Between the clients and the manager.
pub const ROUTER: Station = station(254);
pub const MANAGER: Station = station(101);
/// The manager by another one of its addresses.
pub const OTHER_SOURCE: Station = station(102);

pub const WORKER1: Server = server(1, station(103), 8081);
pub const WORKER2: Server = server(2, station(104), 8082);
pub const FALLBACK: Server = server(3, MANAGER, 8080);

pub const SERVICE_PORT: u16 = 80;

pub fn service(family: Family) -> SocketAddr {
    MANAGER.at(family, SERVICE_PORT)
}

/// Interface indices: on the client's network, on another one, and their far ends.
pub const LOOPBACK: u32 = 1;
pub const ETH1: u32 = 11;
pub const FAR1: u32 = 12;
pub const ETH2: u32 = 21;
pub const FAR2: u32 = 22;

/// The manager's link address on the other network.
pub const MANAGER_ETH2: Mac = [2, 0, 0, 0, 2, 101];

pub const FIRST_NAT_PORT: u16 = 4_096;

impl Server {
    pub fn address(self, family: Family) -> SocketAddr {
        self.station.at(family, self.port)
    }

    /// The same server as the backend that it is for the family that a bench is not about.
    pub fn abroad(self) -> Self {
        Self {
            id: self.id + FALLBACK.id,
            ..self
        }
    }
}

/// The entry of a worker on the first interface.
pub fn backend(server: Server, family: Family) -> Backend {
    let address = mapped(server.station.address(family));
    Backend {
        address,
        port: server.port,
        state: state::UP,
        mode: mode::NAT,
        source: mapped(MANAGER.address(family)),
        next_hop: address,
        interface: ETH1,
        weight: 1,
        reply_interface: ETH1,
        ..Backend::default()
    }
}

/// The entry of the manager's own server.
pub fn fallback(family: Family) -> Backend {
    Backend {
        mode: mode::LOCAL,
        interface: 0,
        reply_interface: 0,
        ..backend(FALLBACK, family)
    }
}

/// An address as it stands in maps of both families.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// `eth1` and `eth2` under known indices and link addresses, silent by themselves.
pub fn make_interfaces() -> anyhow::Result<()> {
    let ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    if fs::exists(ipv6)? {
        fs::write(ipv6, "1")?;
    }
    let [eth1, eth2] = [MANAGER.mac, MANAGER_ETH2].map(written);
    configure(&format!(
        "link set lo up\n\
         link add eth1 index {ETH1} address {eth1} type veth peer name far1 index {FAR1}\n\
         link add eth2 index {ETH2} address {eth2} type veth peer name far2 index {FAR2}\n\
         link set eth1 up\nlink set eth2 up\nlink set far1 up\nlink set far2 up\n"
    ))
}

/// Lets the first interface's driver send by XDP, which this one does to a peer that polls.
pub fn send_by_xdp() -> anyhow::Result<()> {
    let status = Command::new("ethtool")
        .args(["-K", "far1", "gro", "on"])
        .status()?;
    anyhow::ensure!(status.success(), "ethtool failed");
    Ok(())
}

/// Gives an interface another MTU.
pub fn narrow(interface: &str, mtu: u16) {
    configure(&format!("link set {interface} mtu {mtu}\n")).unwrap();
}

/// A lasting entry for a worker on the first interface in the kernel's neighbour table.
pub fn resolve(worker: Server, family: Family) -> anyhow::Result<()> {
    let Station { mac, .. } = worker.station;
    let address = worker.station.address(family);
    let mac = written(mac);
    let ipv6 = "/proc/sys/net/ipv6/conf/eth1/disable_ipv6";
    if family == Family::V6 {
        fs::write(ipv6, "0")?;
    }
    configure(&format!("neigh replace {address} lladdr {mac} dev eth1\n"))
}

fn configure(script: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    ip.stdin.take().unwrap().write_all(script.as_bytes())?;
    anyhow::ensure!(ip.wait()?.success(), "ip failed");
    Ok(())
}

/// A link address as `ip` reads it.
fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

const fn station(host: u8) -> Station {
    Station {
        v4: Ipv4Addr::new(192, 168, 56, host),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0x56, 0, 0, 0, host as u16),
        mac: [2, 0, 0, 0, 0, host],
    }
}

const fn server(id: u32, station: Station, port: u16) -> Server {
    Server { id, station, port }
}
