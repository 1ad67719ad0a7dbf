//! Headers, checksums, rewriting, the steering decision and the layout of the BPF maps. `no_std`, so that the kernel
//! programs and the tests on the host run the same code.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod checksum;
pub mod dsr;
pub mod headers;
pub mod maps;
pub mod named;
pub mod packet;
pub mod steer;
pub mod trace;
pub mod verdict;
