//! Maps of a worker's DSR translator: translated services and their clients.

use crate::address::{Address, V4, V6};

/// Version of this file's layouts and of [`super::DSR_MAPS`]. An agent replaces pins of another version.
pub const DSR_LAYOUT_VERSION: u32 = 4;

/// Names of the DSR translator's maps, and of their pins.
pub mod dsr_name {
    pub const VERSION: &str = "version";
    pub const TRANSLATIONS: &str = "translations";
    pub const PORTS: &str = "ports";
    pub const CLIENTS: &str = "clients";
    pub const CLIENTS6: &str = "clients6";
    pub const NEW_CLIENTS: &str = "new_clients";
    pub const NEW_CLIENTS6: &str = "new_clients6";
    pub const SOCKETS: &str = "sockets";
    pub const VERDICTS: &str = "verdicts";
}

/// Capacity of `translations`.
pub const MAX_TRANSLATIONS: u32 = 64;
/// Capacity of `clients` and of `clients6`.
pub const MAX_DSR_CLIENTS: u32 = 65_536;
/// Capacity of `new_clients` and of `new_clients6`.
pub const MAX_NEW_DSR_CLIENTS: u32 = 16_384;

/// Value of `translations`, by [`super::ServiceKey`]: the socket of the worker's own server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// IPv4 as an IPv4-mapped address.
    pub address: V6,
    pub port: [u8; 2],
    pub reserved: [u8; 6],
}

/// Value of `clients` and `new_clients`, by the tuple of the server's replies: the service that the client uses, or
/// [`DsrClient::DIRECT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DsrClient<A = V4> {
    pub service: A,
    pub port: [u8; 2],
    /// Bits of [`super::ended`] of the client's direction.
    pub client_ended: u8,
    /// The same of the server's direction. Each field has one writer.
    pub server_ended: u8,
    /// In units of [`coarse_time`].
    pub last_seen: u32,
}

impl<A: Address> DsrClient<A> {
    /// A client that connected to the server's own address and port.
    pub const DIRECT: Self = Self {
        service: A::NONE,
        port: [0; 2],
        client_ended: 0,
        server_ended: 0,
        last_seen: 0,
    };

    #[inline(always)]
    pub fn is_direct(&self) -> bool {
        self.port == [0; 2]
    }
}

/// CLOCK_MONOTONIC in units of 2^30 ns: about seconds, without a division.
#[inline(always)]
pub fn coarse_time(now_ns: u64) -> u32 {
    (now_ns >> 30) as u32
}

const _: () = {
    assert!(size_of::<Translation>() == 24 && align_of::<Translation>() == 1);
    assert!(size_of::<DsrClient>() == 12 && align_of::<DsrClient>() == 4);
    assert!(size_of::<DsrClient<V6>>() == 24 && align_of::<DsrClient<V6>>() == 4);
};
