//! XDP: the driver's edge. Checksums are complete here and updated in place (RFC 1624).

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::generated::bpf_redirect,
    programs::XdpContext,
};
use lb_common::{
    frame::{Extent, TcpFrame},
    maps::{FlowKey, Neighbour},
    steer::{Decision, Exit, Hook, steer},
    verdict::Verdict,
};

use crate::{
    maps::Maps,
    packet::{Bytes, arrival},
};

/// 1 to send by redirect even where `XDP_TX` would do; set by the loader for drivers that need it.
#[unsafe(no_mangle)]
static XDP_REDIRECTS: u8 = 0;

/// Steers one packet. What needs a next hop that no reply has shown yet, or the loopback interface,
/// is left untouched to the TC program behind.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let bytes = Bytes {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let length = (bytes.end - bytes.start) as u32;
    let maps = Maps;
    let verdict = 'verdict: {
        let Some(frame) = bytes.tcp_frame() else {
            break 'verdict bytes.verdict_on_short();
        };
        let extent = Extent {
            bytes: length,
            coalesced: false,
        };
        let key = match frame.tuple(extent) {
            Ok(key) => key,
            Err(verdict) => break 'verdict verdict,
        };
        if !maps.may_be_ours(Hook::Ingress, &key) {
            break 'verdict Verdict::NotOurs;
        }
        // SAFETY: the kernel hands a valid context to the program.
        let interface = unsafe { (*ctx.ctx).ingress_ifindex };
        let arrival = arrival(frame, Hook::Ingress, interface, 1, length);
        let decision = steer(&maps, &arrival, &key);
        if decision.verdict == Verdict::ToClient {
            maps.learn(
                decision.backend,
                &Neighbour {
                    worker: arrival.source_mac,
                    manager: arrival.destination_mac,
                },
            );
        }
        let Some(action) = act(&maps, frame, &decision, interface) else {
            // TC will find the connection begun.
            maps.count_connections(decision.backend, decision.opened.into());
            break 'verdict Verdict::HandedOver;
        };
        maps.account(&decision, &arrival);
        return action;
    };
    maps.count(verdict, 1, length.into());
    XDP_PASS
}

/// Carries out a decision; `None` for what is beyond XDP.
#[inline(always)]
fn act(maps: &Maps, frame: &mut TcpFrame, decision: &Decision, arrived_on: u32) -> Option<u32> {
    match decision.exit {
        Exit::Pass => Some(XDP_PASS),
        Exit::Drop => Some(XDP_DROP),
        Exit::Here => {
            rewrite(frame, &decision.leaves, false);
            Some(XDP_PASS)
        }
        Exit::Backend => {
            let neighbour = maps
                .neighbour(decision.backend)
                .filter(Neighbour::is_known)?;
            frame.ethernet.destination = neighbour.worker.bytes();
            frame.ethernet.source = neighbour.manager.bytes();
            rewrite(frame, &decision.leaves, true);
            Some(send(decision.interface, arrived_on))
        }
        Exit::Client => {
            frame.ethernet.destination = decision.destination_mac.bytes();
            frame.ethernet.source = decision.source_mac.bytes();
            rewrite(frame, &decision.leaves, true);
            Some(send(decision.interface, arrived_on))
        }
        Exit::Loopback => None,
    }
}

#[inline(always)]
fn rewrite(frame: &mut TcpFrame, leaves: &FlowKey, forwarded: bool) {
    let rewritten = frame.rewrite(leaves, forwarded);
    rewritten.apply(&mut frame.tcp);
}

#[inline(always)]
fn send(interface: u32, arrived_on: u32) -> u32 {
    // SAFETY: a constant for the verifier, but not for the compiler.
    let redirects = unsafe { core::ptr::read_volatile(&raw const XDP_REDIRECTS) };
    if interface == arrived_on && redirects == 0 {
        XDP_TX
    } else {
        // SAFETY: the helper takes integers only.
        unsafe { bpf_redirect(interface, 0) as u32 }
    }
}
