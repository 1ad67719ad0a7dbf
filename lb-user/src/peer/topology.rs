//! What the replication needs to know of its own manager.

use std::net::IpAddr;

use lb_common::maps::Mac;

use super::wire::About;
use crate::config::Identity;

/// Backends, interfaces and addresses of this manager. Changes with its configuration and its interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// All backends that connections may have, by id.
    pub backends: Vec<(u32, Identity)>,
    /// In the order of the configuration.
    pub interfaces: Vec<OwnInterface>,
    pub nat_sources: Vec<IpAddr>,
    /// See [`About::digest`].
    pub digest: [u8; 32],
    /// See [`About::serving`].
    pub serving: u16,
}

/// An interface of this manager; index 0 and no address where it is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnInterface {
    pub index: u32,
    pub mac: Mac,
}

impl Topology {
    /// What peers must know of it.
    pub fn about(&self) -> About {
        About {
            digest: self.digest,
            nat_sources: self.nat_sources.clone(),
            interfaces: self.interfaces.iter().map(|it| it.mac.bytes()).collect(),
            serving: self.serving,
        }
    }
}
