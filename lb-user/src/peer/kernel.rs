//! What the replication does in the kernel, as a trait, so that tests need none.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use lb_common::maps::{FlowRecord, PeerLink};

/// Counts by outcome of [`Kernel::admit`].
pub type Outcomes = BTreeMap<&'static str, u64>;

/// The connection tables and the tables of peers.
pub trait Kernel: Send {
    /// Writes connections of peers to the tables. Adds to `outcomes` what became of them.
    ///
    /// # Errors
    ///
    /// Says why nothing was written.
    fn admit(&mut self, records: &[FlowRecord], outcomes: &mut Outcomes) -> Result<()>;

    /// Begins to read all connections.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    fn scan(&mut self) -> Result<Box<dyn Scan>>;

    /// Replaces the living peers: of each the index of this manager's interface, and link addresses. `incomplete`: one
    /// of them has not told of all its connections.
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

/// A reading of all connections, a part at a time.
pub trait Scan: Send {
    /// Appends the next connections to `into`; returns whether there may be more.
    ///
    /// # Errors
    ///
    /// Names the map that cannot be read.
    fn next(&mut self, into: &mut Vec<FlowRecord>) -> Result<bool>;
}
