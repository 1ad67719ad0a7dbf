//! Packet tables: what each program does with one frame after another, by `BPF_PROG_TEST_RUN`.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bench;
mod call;
mod datapath;
mod frame;
mod lan;
mod model;
mod outcome;

mod closing;
mod differential;
mod fuzz;
mod handshake;
mod local;
mod paths;
mod policies;
mod selection;
mod untouched;
mod verifier;
