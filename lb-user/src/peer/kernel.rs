//! The replication's operations in the kernel, as traits, so that tests need no kernel.

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr};

use anyhow::Result;
use lb_common::maps::{FlowRecord, PeerLink};

/// Counts by outcome of [`Kernel::admit`].
pub type Outcomes = BTreeMap<&'static str, u64>;

/// The connection tables and the tables of peers.
pub trait Kernel: Send + Debug {
    /// Writes connections of peers to the tables, and adds their outcomes to `outcomes`.
    ///
    /// # Errors
    ///
    /// Says why nothing was written.
    fn admit(&mut self, records: &[FlowRecord], outcomes: &mut Outcomes) -> Result<()>;

    /// Starts to read all connections.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    fn scan(&mut self) -> Result<Box<dyn Scan>>;

    /// Replaces the peers that are alive: for each the index of this manager's interface, and link addresses.
    /// `incomplete`: one of them has not reported all its connections.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be written.
    fn set_links(&mut self, links: &[(u32, PeerLink)], incomplete: bool) -> Result<()>;

    /// Replaces the addresses towards workers that are this manager's or a peer's.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be written.
    fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<()>;

    /// Returns the time of the tables, in ticks.
    ///
    /// # Errors
    ///
    /// The clock cannot be read.
    fn now_ticks(&self) -> Result<u32>;
}

/// Reads all connections in chunks.
pub trait Scan: Send {
    /// Appends the next connections to `into`; returns whether there may be more.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    fn next(&mut self, into: &mut Vec<FlowRecord>) -> Result<bool>;
}
