//! Blocking questions to the kernel: clsact filters, for kernels without tcx, XDP programs, interfaces and network
//! namespaces.

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

/// Whether an interface has a filter of kind `bpf` with this priority and handle. Does not block: the kernel replies
/// within the call.
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

/// Returns the number of the XDP program attached to an interface, if there is one.
///
/// # Errors
///
/// The kernel's error.
pub fn xdp_program(interface: u32) -> Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request.header.index = interface;
    let replies = ask(RouteNetlinkMessage::GetLink(request), NLM_F_ACK)
        .with_context(|| format!("look at interface {interface}"))?;
    let links = replies.into_iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(link) => Some(link.attributes),
        _ => None,
    });
    let xdp = links.flatten().filter_map(|attribute| match attribute {
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
    let replies = ask(request, NLM_F_DUMP).context("list the interfaces")?;
    let links = replies.into_iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// Returns the number that this network namespace has for that of a process; `None` if it has none for it, or if there
/// is no such process.
///
/// # Errors
///
/// The kernel's error.
pub fn namespace_of(pid: i32) -> Result<Option<i32>> {
    let mut request = NsidMessage::default();
    request
        .attributes
        .push(NsidAttribute::Pid(pid.cast_unsigned()));
    let replies = match ask(RouteNetlinkMessage::GetNsId(request), NLM_F_ACK) {
        Ok(replies) => replies,
        Err(_) if Process::new(pid).is_err() => return Ok(None),
        Err(error) => return Err(error.context(format!("look at the network of process {pid}"))),
    };
    let attributes = replies.into_iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewNsId(message) => Some(message.attributes),
        _ => None,
    });
    Ok(attributes.flatten().find_map(|it| match it {
        NsidAttribute::Id(number) => u32::try_from(number).is_ok().then_some(number),
        _ => None,
    }))
}

fn list(interface: u32, parent: u32) -> Result<Vec<TcMessage>> {
    let mut request = TcMessage::with_index(interface.cast_signed());
    request.header.parent = parent.into();
    let replies = ask(RouteNetlinkMessage::GetTrafficFilter(request), NLM_F_DUMP)?;
    let filters = replies.into_iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    });
    Ok(filters.collect())
}

/// Sends a request, and returns the kernel's replies to the end of the dump or the acknowledgement.
fn ask(request: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
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
                NetlinkPayload::InnerMessage(reply) => replies.push(reply),
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
