//! The two address families with their connection tables.

use std::net::{IpAddr, Ipv6Addr};

use lb_common::{
    address::{Address, V4, V6},
    maps::name,
};

/// An address family: map names and conversion to [`IpAddr`].
pub trait Family: Address {
    const FLOWS: &'static str;
    const HALF_OPEN: &'static str;

    fn ip(self) -> IpAddr;
}

impl Family for V4 {
    const FLOWS: &'static str = name::FLOWS;
    const HALF_OPEN: &'static str = name::HALF_OPEN;

    fn ip(self) -> IpAddr {
        self.into()
    }
}

impl Family for V6 {
    const FLOWS: &'static str = name::FLOWS6;
    const HALF_OPEN: &'static str = name::HALF_OPEN6;

    fn ip(self) -> IpAddr {
        self.into()
    }
}

/// Returns the address as in maps of both families.
pub fn mapped(ip: IpAddr) -> V6 {
    match ip {
        IpAddr::V4(ip) => ip.octets().mapped(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The reverse of [`mapped`].
pub fn from_mapped(mapped: V6) -> IpAddr {
    Ipv6Addr::from(mapped).to_canonical()
}
