//! Packet tables: what each program does with one frame after another, by `BPF_PROG_TEST_RUN`.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bench;
mod call;
mod datapath;
mod entries;
mod frame;
mod lan;
mod message;
mod model;
mod outcome;
mod segment;
mod sniffer;
mod tables;

mod answers;
mod bytes;
mod clients;
mod closing;
mod datagrams;
mod deny;
mod differential;
mod direct;
mod dsr_translator;
mod errors;
mod fuzz;
mod handshake;
mod ipv4;
mod ipv6;
mod live;
mod local;
mod paths;
mod peer;
mod policies;
mod rare;
mod retry;
mod routed;
mod selection;
mod summed;
mod too_large;
mod trace;
mod untouched;
mod verifier;
