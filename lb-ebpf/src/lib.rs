//! What the kernel programs have in common: views of a packet's bytes, and the socket buffer's edge.
#![no_std]

pub mod packet_bytes;
pub mod skb;
