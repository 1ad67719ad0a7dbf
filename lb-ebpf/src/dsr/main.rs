//! A worker's DSR translator: lets the worker's own server reply to clients of a service directly.
//!
//! `memlb_dsr_in` and `memlb_dsr_out` are attached to the interfaces on which requests arrive and replies leave.
#![no_std]
#![no_main]

mod direction;
mod maps;
mod program;

use aya_ebpf::{macros::classifier, programs::TcContext};
use direction::Direction;

#[classifier]
pub fn memlb_dsr_in(ctx: TcContext) -> i32 {
    program::run(&ctx, Direction::Ingress)
}

#[classifier]
pub fn memlb_dsr_out(ctx: TcContext) -> i32 {
    program::run(&ctx, Direction::Egress)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked: the verifier would reject an endless loop.
    loop {}
}

/// Helpers such as `bpf_ktime_get_coarse_ns` require a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
