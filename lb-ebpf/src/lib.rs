//! Shared by the kernel programs: views of packet bytes, and socket buffers.
#![no_std]

pub mod packet_bytes;
pub mod skb;
