//! One packet of a trace.

use std::{fmt, net::SocketAddr};

use lb_common::{
    address::V6,
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    },
    maps::{FlowKey, TraceEvent, trace_hook},
    verdict::Verdict,
};
use lb_core::Protocol;
use serde::{Deserialize, Serialize};

use super::Names;
use crate::datapath::{from_mapped, name_of, protocol_of};

const ARP: u16 = 0x0806;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// By the manager's clock, RFC 3339.
    pub time: String,
    pub edge: Edge,
    pub interface: String,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `arp`, or a number.
    pub protocol: String,
    /// The flags of a segment, as in `SYN ACK`; type and code of an ICMP message.
    pub kind: String,
    pub direction: Direction,
    /// The client; for packets of no service, the source as it arrived.
    pub client: Option<String>,
    /// The service's address; for packets of no service, the destination.
    pub service_address: Option<String>,
    pub service: Option<String>,
    pub worker: Option<String>,
    pub worker_address: Option<String>,
    /// The packet's addresses after translation, if it was forwarded.
    pub leaves: Option<AddressPair>,
    pub verdict: String,
    /// The number of packets on the wire (an offloaded packet has several), and their bytes.
    pub packets: u32,
    pub bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    pub source: String,
    pub destination: String,
}

/// The program and hook that handled the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    Xdp,
    TcIn,
    TcOut,
    Loopback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    ToService,
    ToClient,
}

impl Edge {
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIn => "tc in",
            Self::TcOut => "tc out",
            Self::Loopback => "lo",
        }
    }
}

impl Packet {
    pub fn new(event: &TraceEvent, names: &Names) -> Self {
        let verdict = Verdict::ALL.get(usize::from(event.verdict)).copied();
        let outward = matches!(verdict, Some(Verdict::ToClient | Verdict::FromManager));
        let (arrives, leaves) = (
            Endpoints::new(&event.original),
            Endpoints::new(&event.translated),
        );
        // A reply shows client and service as it leaves, everything else as it arrives.
        let ends = match (&leaves, outward) {
            (Some(leaves), true) => Some((leaves.destination, leaves.source)),
            _ => arrives.as_ref().map(|it| (it.source, it.destination)),
        };
        let known = names.backend(event.backend);
        let backend =
            |of: fn(&super::names::NamedBackend) -> &String| known.map(|it| of(it).clone());
        let addressed = ends.and_then(|(_, service)| {
            let protocol = protocol(event.original.protocol)?;
            names.service_at(service, protocol).map(str::to_owned)
        });
        let show = |address: SocketAddr| match address.port() {
            0 => address.ip().to_string(),
            _ => address.to_string(),
        };
        Self {
            time: names.time(event.time_ns),
            edge: match event.hook {
                trace_hook::XDP => Edge::Xdp,
                trace_hook::EGRESS => Edge::TcOut,
                trace_hook::LOOPBACK => Edge::Loopback,
                _ => Edge::TcIn,
            },
            interface: interface(event.interface),
            protocol: protocol_name(event),
            kind: kind(event),
            direction: match outward {
                true => Direction::ToClient,
                false => Direction::ToService,
            },
            client: ends.map(|(client, _)| show(client)),
            service_address: ends.map(|(_, service)| show(service)),
            service: backend(|it| &it.service).or(addressed),
            worker: backend(|it| &it.name),
            worker_address: backend(|it| &it.address),
            leaves: leaves.map(|it| AddressPair {
                source: show(it.source),
                destination: show(it.destination),
            }),
            verdict: verdict.map_or_else(|| event.verdict.to_string(), |it| it.name().to_owned()),
            packets: event.packets,
            bytes: event.bytes,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}  {:<6} {:<6} ",
            self.time,
            self.edge.name(),
            self.interface
        )?;
        if let (Some(client), Some(address)) = (&self.client, &self.service_address) {
            let arrow = match self.direction {
                Direction::ToService => ">",
                Direction::ToClient => "<",
            };
            write!(f, "{client} {arrow} ")?;
            if let Some(service) = &self.service {
                write!(f, "{service} ")?;
            }
            write!(f, "{address}  ")?;
        }
        write!(f, "{}", self.protocol)?;
        if !self.kind.is_empty() {
            write!(f, " {}", self.kind)?;
        }
        write!(f, "  {}", self.verdict)?;
        if let (Some(worker), Some(address)) = (&self.worker, &self.worker_address) {
            write!(f, " {worker} {address}")?;
        }
        write!(f, "  {} B", self.bytes)?;
        if self.packets > 1 {
            write!(f, " in {}", self.packets)?;
        }
        Ok(())
    }
}

struct Endpoints {
    source: SocketAddr,
    destination: SocketAddr,
}

impl Endpoints {
    /// `None` for the empty key.
    fn new(key: &FlowKey<V6>) -> Option<Self> {
        if *key == FlowKey::NONE {
            return None;
        }
        let end = |address, port| SocketAddr::new(from_mapped(address), u16::from_be_bytes(port));
        Some(Self {
            source: end(key.source, key.source_port),
            destination: end(key.destination, key.destination_port),
        })
    }
}

fn protocol(number: u32) -> Option<Protocol> {
    protocol_of(u8::try_from(number).ok()?)
}

fn interface(index: u32) -> String {
    name_of(index).unwrap_or_else(|| format!("#{index}"))
}

fn protocol_name(event: &TraceEvent) -> String {
    match (event.ether_type, event.protocol) {
        (_, PROTOCOL_TCP) => "tcp".to_owned(),
        (_, PROTOCOL_UDP) => "udp".to_owned(),
        (_, PROTOCOL_ICMP) => "icmp".to_owned(),
        (_, PROTOCOL_ICMPV6) => "icmpv6".to_owned(),
        (ETHERTYPE_IPV4, number) => format!("ipv4/{number}"),
        (ETHERTYPE_IPV6, number) => format!("ipv6/{number}"),
        (ARP, _) => "arp".to_owned(),
        (other, _) => format!("{other:#06x}"),
    }
}

fn kind(event: &TraceEvent) -> String {
    const FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    match event.protocol {
        PROTOCOL_TCP => {
            let is_set =
                |(bit, name): (usize, &&'static str)| (event.kind >> bit & 1 == 1).then_some(*name);
            let set: Vec<_> = FLAGS.iter().enumerate().filter_map(is_set).collect();
            set.join(" ")
        }
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
            let about = match protocol(event.original.protocol) {
                Some(protocol) => format!(" about {protocol}"),
                None => String::new(),
            };
            format!("{}/{}{about}", event.kind, event.code)
        }
        _ => String::new(),
    }
}
