//! Network interfaces: index and present name.

use std::collections::HashMap;

use nix::{
    ifaddrs::getifaddrs,
    net::if_::{if_indextoname, if_nametoindex},
};

/// An interface with its present name.
#[derive(Debug, Clone, Copy)]
pub struct InterfaceRef<'a> {
    pub index: u32,
    pub name: &'a str,
}

/// An interface of this machine that carries Ethernet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    /// Its own name, not an alternative one.
    pub name: String,
    /// Kind of a virtual interface (`veth`, `bridge`, …); `None` for a physical one.
    pub kind: Option<String>,
}

impl Interface {
    pub fn target(&self) -> InterfaceRef<'_> {
        InterfaceRef {
            index: self.index,
            name: &self.name,
        }
    }
}

/// Returns the index of the interface with this own or alternative name.
pub fn index_of(name: &str) -> Option<u32> {
    // The only error is that there is no such interface.
    if_nametoindex(name).ok()
}

/// Returns the present name of an interface.
pub fn name_of(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?.into_string().ok()?;
    // nix returns an empty name for the C library's null pointer.
    (!name.is_empty()).then_some(name)
}

/// Returns the link address of each interface, by the interface's present name.
///
/// # Errors
///
/// The kernel's error.
pub fn link_addresses() -> nix::Result<HashMap<String, [u8; 6]>> {
    let link = getifaddrs()?.filter_map(|it| {
        let mac = it.address?.as_link_addr()?.addr()?;
        Some((it.interface_name, mac))
    });
    Ok(link.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_interface_has_no_name() {
        assert_eq!(name_of(lb_common::maps::LOOPBACK).as_deref(), Some("lo"));
        assert_eq!(name_of(0x7fff_ffff), None);
    }
}
