//! The replication's view of its own manager.

use std::net::IpAddr;

use lb_common::maps::Mac;

use super::wire::Advertisement;
use crate::config::Identity;

/// Backends, interfaces and addresses of this manager. Changes with its configuration and its interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// All backends that connections may have, by id.
    pub backends: Vec<(u32, Identity)>,
    /// In the order of the configuration.
    pub interfaces: Vec<OwnInterface>,
    pub nat_sources: Vec<IpAddr>,
    /// See [`Advertisement::digest`].
    pub digest: [u8; 32],
    /// See [`Advertisement::serving`].
    pub serving: u16,
}

/// An interface of this manager; index 0 and no address where it is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnInterface {
    pub index: u32,
    pub mac: Mac,
}

impl Topology {
    /// What this manager advertises to its peers.
    pub fn advertisement(&self) -> Advertisement {
        Advertisement {
            digest: self.digest,
            nat_sources: self.nat_sources.clone(),
            interfaces: self.interfaces.iter().map(|it| it.mac.bytes()).collect(),
            serving: self.serving,
        }
    }
}
