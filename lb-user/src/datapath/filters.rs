//! Look-up of clsact filters, for kernels without tcx.

use std::io;

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Parents of the filters of a clsact queueing discipline (`TC_H_CLSACT`, linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Whether an interface has a filter of kind `bpf` with this priority and handle. Does not block: the kernel replies
/// within the call.
///
/// # Errors
///
/// The kernel's error.
pub fn has(interface: u32, direction: TcAttachType, priority: u16, handle: u32) -> Result<bool> {
    let parent = match direction {
        TcAttachType::Ingress => INGRESS,
        _ => EGRESS,
    };
    let filters = list(interface, parent)
        .with_context(|| format!("list the filters of interface {interface}"))?;
    let is_bpf = |it: &TcAttribute| matches!(it, TcAttribute::Kind(kind) if kind == "bpf");
    Ok(filters.iter().any(|filter| {
        let header = &filter.header;
        header.info >> 16 == u32::from(priority)
            && u32::from(header.handle) == handle
            && filter.attributes.iter().any(is_bpf)
    }))
}

fn list(interface: u32, parent: u32) -> Result<Vec<TcMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = TcMessage::with_index(interface.cast_signed());
    request.header.parent = parent.into();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(request));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut filters = Vec::new();
    loop {
        let (reply, _) = socket.recv_from_full()?;
        let mut rest = reply.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    filters.push(filter);
                }
                NetlinkPayload::Done(_) => return Ok(filters),
                NetlinkPayload::Error(error) => return Err(io::Error::from(error).into()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_an_interface_without_filters() {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            assert!(!has(lb_common::maps::LOOPBACK, direction, 60_000, 1).unwrap());
        }
    }
}
