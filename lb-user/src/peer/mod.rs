//! Replication between managers of the same services: each sends its peers what it knows of its connections, so that
//! any of them can carry them on. docs/peer-protocol.md describes the frames.

mod handle;
mod status;

pub use handle::Peers;
pub use status::{PeerState, PeerStatus};
