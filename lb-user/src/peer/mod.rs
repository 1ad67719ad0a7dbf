//! Replication between managers of the same services: each sends its connections to its peers, so that any of them can
//! continue them. docs/peer-protocol.md describes the frames.
//!
//! The replication runs in its own thread, so that it and the manager's loop do not delay each other. There are two TCP
//! connections with each peer: `sender` opens one and sends records, `receiver` accepts the other and acknowledges.

mod carried;
mod dictionary;
mod handle;
mod hub;
mod kernel;
mod orders;
mod receiver;
mod remote;
mod sender;
mod session;
mod short_lived;
mod status;
mod tables;
mod thread;
mod topology;
pub mod wire;

pub use handle::Peers;
pub use kernel::{Kernel, Outcomes, Scan};
pub use orders::{
    OperatorState, OrderEntry, OrderExchange, OrderValue, ReceivedOrders, Registers, Subject,
};
pub use remote::{PeerSettings, QUEUE_RECORDS};
pub use status::{PeerState, PeerStatus};
pub use thread::{PeerListener, Replication, read_peers, start};
pub use topology::{OwnInterface, Topology};

#[cfg(test)]
mod tests;
