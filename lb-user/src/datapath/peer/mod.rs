//! Replication of connections: records of this manager's connections, intake of the peers' connections, and the maps by
//! which the programs relay packets to peers.
//!
//! All of it works through the pins, outside the manager's main task. A kernel program writes the peers' connections,
//! as it does for packets.

mod events;
mod intake;
mod scan;
mod tables;

pub use events::{FlowEvents, UnknownClients, parse_event};
pub use intake::{Intake, IntakeOutcome};
pub use scan::FlowScan;
pub use tables::PeerTables;

use anyhow::Result;

use super::Datapath;

/// The maps and the program that the replication needs.
#[derive(Debug)]
pub struct ReplicationTables {
    pub events: FlowEvents,
    pub intake: Intake,
    pub scan: FlowScan,
    pub tables: PeerTables,
}

impl Datapath {
    /// Opens the maps and the program that the replication needs.
    ///
    /// # Errors
    ///
    /// Names the map or program that cannot be opened.
    pub fn replication_tables(&mut self) -> Result<ReplicationTables> {
        Ok(ReplicationTables {
            events: FlowEvents::open(&self.pin_path)?,
            intake: self.intake()?,
            scan: FlowScan::open(&self.pin_path)?,
            tables: PeerTables::open(&self.pin_path)?,
        })
    }

    /// Loads the program that writes peers' connections.
    ///
    /// # Errors
    ///
    /// The program cannot be loaded.
    pub fn intake(&mut self) -> Result<Intake> {
        Intake::load(&mut self.ebpf)
    }
}
