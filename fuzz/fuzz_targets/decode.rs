//! Decodes arbitrary bytes as a datagram and checks the invariants that the manager relies on.

#![no_main]

#[path = "../harmless.rs"]
mod harmless;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| harmless::check(datagram));
