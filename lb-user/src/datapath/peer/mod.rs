//! Connections that peers know: records of those here, intake of theirs, and the maps by which packets reach them.
//!
//! Everything here works through the pins, and is used outside the manager's main task: an imported connection is
//! written by a program, as packets write theirs.

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

/// What the task of the peers needs of the datapath.
#[derive(Debug)]
pub struct ReplicationTables {
    pub events: FlowEvents,
    pub intake: Intake,
    pub scan: FlowScan,
    pub tables: PeerTables,
}

impl Datapath {
    /// Opens what the task of the peers needs.
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

    /// Returns a way to take in connections.
    ///
    /// # Errors
    ///
    /// The program cannot be loaded.
    pub fn intake(&mut self) -> Result<Intake> {
        Intake::load(&mut self.ebpf)
    }
}
