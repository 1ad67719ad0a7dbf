//! Arbitrary bytes from a peer: whatever comes out keeps the promises that the manager builds on.

#![no_main]

#[path = "../peer_harmless.rs"]
mod peer_harmless;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| peer_harmless::check(bytes));
