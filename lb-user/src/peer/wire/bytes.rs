//! Reads values from bytes of an unknown sender.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::datapath::{from_mapped, mapped};

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub struct ByteReader<'a>(pub &'a [u8]);

impl<'a> ByteReader<'a> {
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Reads bytes after their number.
    pub fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.bytes(length.into())
    }

    pub fn ip(&mut self) -> Option<IpAddr> {
        self.array()
            .map(|bytes| from_mapped(Ipv6Addr::from_octets(bytes).octets()))
    }

    pub fn endpoint(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip()?, self.u16()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub fn put_ip(ip: IpAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&mapped(ip));
}

pub fn put_endpoint(endpoint: SocketAddr, out: &mut Vec<u8>) {
    put_ip(endpoint.ip(), out);
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}

/// Writes bytes after their number; at most 255.
pub fn put_short(bytes: &[u8], out: &mut Vec<u8>) {
    let bytes = &bytes[..bytes.len().min(u8::MAX.into())];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}
