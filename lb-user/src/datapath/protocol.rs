//! Protocols by their IANA number, as in maps and on the wire.

use lb_common::headers::{PROTOCOL_TCP, PROTOCOL_UDP};
use lb_core::Protocol;

pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}

/// Returns the protocol with a number; `None` for all but TCP and UDP.
pub fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        PROTOCOL_TCP => Some(Protocol::Tcp),
        PROTOCOL_UDP => Some(Protocol::Udp),
        _ => None,
    }
}
