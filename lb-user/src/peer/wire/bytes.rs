//! Reads values from untrusted bytes, and writes them.

use std::net::{IpAddr, SocketAddr};

use crate::datapath::{from_mapped, mapped};

/// A cursor: the bytes that are left to read.
#[derive(Debug, Clone, Copy)]
pub struct ByteReader<'a>(pub &'a [u8]);

impl<'a> ByteReader<'a> {
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
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

    /// Reads bytes that follow their length.
    pub fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.bytes(length.into())
    }

    pub fn ip(&mut self) -> Option<IpAddr> {
        self.array().map(from_mapped)
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

/// Writes the length and the bytes, of which there are at most 255.
pub fn put_short(bytes: &[u8], out: &mut Vec<u8>) {
    let bytes = &bytes[..bytes.len().min(u8::MAX.into())];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}
