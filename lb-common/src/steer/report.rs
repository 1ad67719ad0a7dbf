//! Records of connections for the peers.

use super::{FlowScratch, Tables};
use crate::maps::{Backend, Flow, FlowKey, LOOPBACK, mode, record_kind};

/// What a record says of the entry of the other direction: sequence number, and in the upper half the bits of
/// [`ended`](crate::maps::ended). One word, because a BPF function has at most five arguments.
#[inline(always)]
pub(super) fn other_side(sequence: u32, ended: u8) -> u64 {
    u64::from(ended) << 32 | u64::from(sequence)
}

/// Reports a connection by one of its entries. Not those to the manager's own server, or from clients on the manager:
/// they end with the manager. Returns 0.
#[inline(always)]
pub fn report_flow<T: Tables>(
    tables: &T,
    kind: u8,
    other: u64,
    key: &FlowKey<T::Address>,
    flow: &Flow<T::Address>,
) -> u32 {
    if !is_reported(tables, flow) {
        return 0;
    }
    tables.report(|event| {
        event.describe(kind, key, flow, (other as u32, (other >> 32) as u8));
    });
    0
}

/// Reports the connection that has just begun, whose entries are in the flow scratch. Returns 0.
#[inline(never)]
pub(super) fn report_opened<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> u32 {
    let Some(scratch) = tables.flow_scratch() else {
        return 0;
    };
    let FlowScratch { request, reply, .. } = &*scratch;
    if is_reported(tables, request) {
        let other = (reply.sequence, reply.ended);
        tables.report(|event| event.describe(record_kind::OPENED, key, request, other));
    }
    0
}

/// Whether the connection is reported to peers.
#[inline(always)]
fn is_reported<T: Tables>(tables: &T, flow: &Flow<T::Address>) -> bool {
    let is_local = |it: &Backend| it.mode == mode::LOCAL;
    tables.peer_switch().reports != 0
        && flow.client_interface != LOOPBACK
        && tables.backend(flow.backend).is_some_and(|it| !is_local(it))
}

/// Reports the end of a connection. Returns 0.
#[inline(always)]
pub(super) fn report_end<T: Tables>(
    tables: &T,
    key: &FlowKey<T::Address>,
    flow: &Flow<T::Address>,
    other_ended: u8,
) -> u32 {
    tables.report_flow(record_kind::ENDED, other_side(0, other_ended), key, flow)
}
