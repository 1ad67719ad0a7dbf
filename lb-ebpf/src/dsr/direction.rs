//! The direction of a packet.

/// The direction in which a packet passes the worker's interface.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}
