//! This machine's own addresses, each with its interface.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

/// Addresses with the names of their interfaces.
#[derive(Debug, Clone, Default)]
pub struct Addresses(pub Vec<(IpAddr, String)>);

/// Returns this machine's addresses.
///
/// # Errors
///
/// The kernel's error.
pub fn own() -> Result<Addresses> {
    let interfaces = getifaddrs().context("list this machine's addresses")?;
    let own = interfaces.filter_map(|interface| {
        let address = ip(&interface.address?)?;
        Some((address, interface.interface_name))
    });
    Ok(Addresses(own.collect()))
}

/// Returns the addresses that no other machine sends from: this machine's own, and the broadcast addresses of
/// its networks.
///
/// # Errors
///
/// The kernel's error.
pub fn sent_by_this_host_only() -> Result<BTreeSet<IpAddr>> {
    let interfaces = getifaddrs().context("list this machine's addresses")?;
    let addresses = interfaces.flat_map(|it| [it.address, it.broadcast]);
    Ok(addresses.flatten().filter_map(|it| ip(&it)).collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    }
}

impl Addresses {
    /// Returns the interface that has this address.
    pub fn interface_of(&self, address: IpAddr) -> Option<&str> {
        let mut addresses = self.0.iter();
        addresses
            .find(|(own, _)| *own == address)
            .map(|(_, interface)| interface.as_str())
    }

    /// Returns the interface that has this address, if it is none of `interfaces`. An address of `lo` is
    /// reachable through every interface.
    pub fn elsewhere<'a>(&'a self, address: IpAddr, interfaces: &[&str]) -> Option<&'a str> {
        let own = self.interface_of(address)?;
        (own != "lo" && !interfaces.contains(&own)).then_some(own)
    }
}

/// Returns the message that this machine lacks a service's address, and the command that adds it.
pub fn absent(service: &str, address: IpAddr, interface: &str) -> (String, String) {
    let found = format!(
        "{service}: {address} is not an address of this host, so clients' packets do not arrive here (unless this is a \
         standby, or a route leads the address here)"
    );
    let length = if address.is_ipv4() { 24 } else { 64 };
    (
        found,
        format!("ip address add {address}/{length} dev {interface}"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn reports_which_interface_has_an_address() {
        let own = own().unwrap();
        assert_eq!(own.interface_of(Ipv4Addr::LOCALHOST.into()), Some("lo"));
        assert_eq!(own.interface_of(Ipv4Addr::new(192, 0, 2, 1).into()), None);
        assert_eq!(own.elsewhere(Ipv4Addr::LOCALHOST.into(), &["eth1"]), None);
        let address = IpAddr::from([192, 0, 2, 1]);
        let own = Addresses(vec![(address, "eth1".to_owned())]);
        assert_eq!(own.elsewhere(address, &["eth2"]), Some("eth1"));
        assert_eq!(own.elsewhere(address, &["eth2", "eth1"]), None);
    }
}
