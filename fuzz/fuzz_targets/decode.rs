//! Arbitrary bytes as a datagram: whatever comes out keeps the promises that the manager builds on.

#![no_main]

#[path = "../harmless.rs"]
mod harmless;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| harmless::check(datagram));
