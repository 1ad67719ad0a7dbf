//! The kernel programs of the manager: parse, decide, act.
//!
//! `memlb_ingress` and `memlb_egress` are attached to every configured interface, `memlb_loopback` to `lo`. Where the
//! driver supports native XDP, `memlb_xdp` runs before `memlb_ingress` and passes to it what XDP cannot do.
#![no_std]
#![no_main]
// For atomic operations, which Rust lacks for this target.
#![feature(asm_experimental_arch)]

mod intake;
mod maps;
mod narrow;
mod packet;
mod packet_scratch;
mod peer;
mod redirect;
mod retry;
mod stages;
mod tc;
mod too_large;
mod trace;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp as xdp_program},
    programs::{TcContext, XdpContext},
};
use lb_common::steer::Hook;

#[classifier]
pub fn memlb_ingress(ctx: TcContext) -> i32 {
    tc::run(&ctx, Hook::Ingress)
}

#[classifier]
pub fn memlb_egress(ctx: TcContext) -> i32 {
    tc::run(&ctx, Hook::Egress)
}

#[classifier]
pub fn memlb_loopback(ctx: TcContext) -> i32 {
    tc::run(&ctx, Hook::Loopback)
}

#[xdp_program]
pub fn memlb_xdp(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

/// Writes records of connections from peers to the flow tables. Never attached: the manager runs it.
#[classifier]
pub fn memlb_intake(ctx: TcContext) -> i32 {
    intake::run(ctx.skb.skb)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked: the verifier would reject an endless loop.
    loop {}
}

/// Helpers such as `bpf_redirect_neigh` and `bpf_ktime_get_coarse_ns` require a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
