//! Decodes arbitrary bytes from a peer and checks the invariants that the manager relies on.

#![no_main]

#[path = "../peer_harmless.rs"]
mod peer_harmless;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| peer_harmless::check(bytes));
