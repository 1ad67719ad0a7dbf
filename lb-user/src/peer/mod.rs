//! Replication between managers of the same services: each sends its peers what it knows of its connections, so that
//! any of them can carry them on. docs/peer-protocol.md describes the frames.
//!
//! A thread of its own does it, so that neither it nor the manager's loop delays the other. For each peer there are two
//! connections: `sender` opens one and sends records, `receiver` accepts the other and acknowledges.

mod confirmed;
mod dictionary;
mod fast_hash;
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
pub use orders::{OperatorStateWatch, Registers};
pub use remote::{PeerSettings, QUEUE_RECORDS};
pub use status::{PeerState, PeerStatus};
pub use thread::{PeerListener, Replication, read_peers, start};
pub use topology::{OwnInterface, Topology};

#[cfg(test)]
mod tests;
