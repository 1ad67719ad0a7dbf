//! Queries to the kernel, which replies within the call: clsact filters, for kernels without tcx, XDP programs,
//! interfaces and network namespaces.

use std::io;

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use procfs::process::Process;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp},
        nsid::{NsidAttribute, NsidMessage},
        tc::{TcAttribute, TcMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::links::Links;

/// Parents of the filters of a clsact queueing discipline (`TC_H_CLSACT`, linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Whether an interface has a filter of kind `bpf` with this priority and handle.
///
/// # Errors
///
/// The kernel's error.
pub fn has_filter(
    interface: u32,
    direction: TcAttachType,
    priority: u16,
    handle: u32,
) -> Result<bool> {
    let parent = match direction {
        TcAttachType::Ingress => INGRESS,
        _ => EGRESS,
    };
    let mut request = TcMessage::with_index(interface.cast_signed());
    request.header.parent = parent.into();
    let request = RouteNetlinkMessage::GetTrafficFilter(request);
    let filters = query(request, NLM_F_DUMP, |reply| match reply {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    });
    let filters = filters.with_context(|| format!("list the filters of interface {interface}"))?;
    let is_bpf = |it: &TcAttribute| matches!(it, TcAttribute::Kind(kind) if kind == "bpf");
    Ok(filters.iter().any(|filter| {
        let header = &filter.header;
        header.info >> 16 == u32::from(priority)
            && u32::from(header.handle) == handle
            && filter.attributes.iter().any(is_bpf)
    }))
}

/// Returns the id of the XDP program attached to an interface, if there is one.
///
/// # Errors
///
/// The kernel's error.
pub fn xdp_program(interface: u32) -> Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request.header.index = interface;
    let links = query(RouteNetlinkMessage::GetLink(request), NLM_F_ACK, new_link)
        .with_context(|| format!("query interface {interface}"))?;
    let attributes = links.into_iter().flat_map(|link| link.attributes);
    let xdp = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    Ok(xdp.flatten().find_map(|it| match it {
        LinkXdp::ProgId(id) => Some(id),
        _ => None,
    }))
}

/// Lists all interfaces.
///
/// # Errors
///
/// The kernel's error.
pub fn links() -> Result<Links> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = query(request, NLM_F_DUMP, new_link).context("list the interfaces")?;
    Ok(links.into_iter().collect())
}

fn new_link(reply: RouteNetlinkMessage) -> Option<LinkMessage> {
    match reply {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// Returns the id, in this network namespace, of a process's network namespace; `None` if it has no id, or if there is
/// no such process.
///
/// # Errors
///
/// The kernel's error.
pub fn namespace_of(pid: i32) -> Result<Option<i32>> {
    let mut request = NsidMessage::default();
    request
        .attributes
        .push(NsidAttribute::Pid(pid.cast_unsigned()));
    let request = RouteNetlinkMessage::GetNsId(request);
    let replies = query(request, NLM_F_ACK, |reply| match reply {
        RouteNetlinkMessage::NewNsId(message) => Some(message.attributes),
        _ => None,
    });
    let attributes = match replies {
        Ok(attributes) => attributes,
        Err(_) if Process::new(pid).is_err() => return Ok(None),
        Err(error) => {
            return Err(error.context(format!("query the network namespace of process {pid}")));
        }
    };
    Ok(attributes.into_iter().flatten().find_map(|it| match it {
        NsidAttribute::Id(id) => u32::try_from(id).is_ok().then_some(id),
        _ => None,
    }))
}

/// Sends a request. Returns what `parse` accepts of the kernel's replies, up to the end of the dump or the
/// acknowledgement.
fn query<T>(
    request: RouteNetlinkMessage,
    flags: u16,
    parse: fn(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut replies = Vec::new();
    loop {
        let (reply, _) = socket.recv_from_full()?;
        let mut rest = reply.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(reply) => replies.extend(parse(reply)),
                NetlinkPayload::Done(_) => return Ok(replies),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(replies),
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
    fn the_kernel_lists_no_filter_of_an_interface_without_any() {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            assert!(!has_filter(lb_common::maps::LOOPBACK, direction, 60_000, 1).unwrap());
        }
        assert_eq!(xdp_program(lb_common::maps::LOOPBACK).unwrap(), None);
        assert!(xdp_program(1 << 30).is_err());
    }
}
