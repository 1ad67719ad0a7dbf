//! Translates connections between the ids, interface indices and clocks of two managers.

use std::net::{IpAddr, SocketAddr};

use lb_common::maps::{FlowRecord, Mac, record_kind};

use super::{
    topology::{OwnInterface, Topology},
    wire::{BackendDefinition, CLIENT_ADDRESS, LiveFields, Message, Record, RecordKind},
};
use crate::{
    config::Identity,
    datapath::{from_mapped, mapped, protocol_number},
};

/// The sender's side of a session: references to backends and endpoints. Each is defined before it is used.
#[derive(Debug, Default)]
pub struct OutgoingDictionary {
    /// The backends by id, each with whether its reference is defined.
    backends: foldhash::HashMap<u32, (Identity, bool)>,
    /// Positions in `manager.interfaces` by interface index.
    interfaces: foldhash::HashMap<u32, u8>,
    endpoints: foldhash::HashMap<SocketAddr, u16>,
}

impl OutgoingDictionary {
    /// Applies a change of this manager's topology.
    pub fn set_topology(&mut self, topology: &Topology) {
        let is_defined = |id, identity| self.backends.get(id) == Some(&(identity, true));
        let backends = topology.backends.iter();
        let backends = backends.map(|(id, identity)| (*id, (*identity, is_defined(id, *identity))));
        self.backends = backends.collect();
        let indices = topology.interfaces.iter().map(|it| it.index);
        self.interfaces = indices.zip(0..).filter(|(index, _)| *index != 0).collect();
    }

    /// Translates a record of the tables; appends to `definitions` the references that the peer needs before.
    ///
    /// Returns `None` for a connection that the peer cannot continue: of the manager itself, or of a backend or
    /// interface that is not configured.
    pub fn translate(
        &mut self,
        flow: &FlowRecord,
        now_ticks: u32,
        definitions: &mut Vec<Message>,
    ) -> Option<Record> {
        let kind = match flow.kind {
            record_kind::OPENED => RecordKind::Opened,
            record_kind::ENDED => RecordKind::Ended,
            record_kind::PRESENT => RecordKind::Present,
            _ => return None,
        };
        let service = endpoint(&flow.service_address, flow.service_port);
        let source = from_mapped(flow.source);
        let client = from_mapped(flow.client);
        let live = match kind {
            RecordKind::Ended => LiveFields::default(),
            RecordKind::Opened | RecordKind::Present => LiveFields {
                interface: *self.interfaces.get(&flow.client_interface)?,
                mac: flow.client_mac.bytes(),
                tag: flow.client_mac.tag(),
                seen_age: now_ticks.wrapping_sub(flow.last_seen_ticks),
                sequences: flow.sequences,
            },
        };
        Some(Record {
            kind,
            ended: flow.ended,
            carried: flow.carried != 0,
            backend: self.backend(flow.backend, definitions)?,
            service: self.endpoint(service, definitions)?,
            source: match source == client {
                true => CLIENT_ADDRESS,
                false => self.endpoint((source, 0).into(), definitions)?,
            },
            client,
            client_port: u16::from_be_bytes(flow.client_port),
            source_port: u16::from_be_bytes(flow.source_port),
            created_age: now_ticks.wrapping_sub(flow.created_ticks),
            live,
        })
    }

    fn backend(&mut self, id: u32, definitions: &mut Vec<Message>) -> Option<u16> {
        let (identity, is_defined) = self.backends.get_mut(&id)?;
        let reference = u16::try_from(id).ok()?;
        if !*is_defined {
            *is_defined = true;
            let name = BackendDefinition {
                reference,
                identity: *identity,
            };
            definitions.push(Message::Backends(vec![name]));
        }
        Some(reference)
    }

    fn endpoint(&mut self, endpoint: SocketAddr, definitions: &mut Vec<Message>) -> Option<u16> {
        if let Some(reference) = self.endpoints.get(&endpoint) {
            return Some(*reference);
        }
        // From 1: 0 is the client's own address.
        let reference = u16::try_from(self.endpoints.len() + 1).ok()?;
        self.endpoints.insert(endpoint, reference);
        definitions.push(Message::Endpoints(vec![(reference, endpoint)]));
        Some(reference)
    }
}

/// Why a peer's record cannot be translated for this manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranslationError {
    /// No service here has such a worker.
    Backend,
    /// `manager.interfaces` has fewer entries here.
    Interface,
    /// The peer has not defined a reference.
    Reference,
}

/// The receiver's side of a session.
#[derive(Debug, Default)]
pub struct IncomingDictionary {
    /// The peer's backends, and their ids here.
    backends: foldhash::HashMap<u16, (Identity, Option<u32>)>,
    endpoints: foldhash::HashMap<u16, SocketAddr>,
    own: Vec<(u32, Identity)>,
    interfaces: Vec<OwnInterface>,
}

impl IncomingDictionary {
    /// Applies a change of this manager's topology; returns whether it now has a backend of the peer that it lacked.
    pub fn set_topology(&mut self, topology: &Topology) -> bool {
        self.own.clone_from(&topology.backends);
        self.interfaces.clone_from(&topology.interfaces);
        let mut is_found = false;
        for (identity, id) in self.backends.values_mut() {
            let found = find(&self.own, identity);
            is_found |= id.is_none() && found.is_some();
            *id = found;
        }
        is_found
    }

    pub fn define_backend(&mut self, name: BackendDefinition) {
        let found = find(&self.own, &name.identity);
        self.backends.insert(name.reference, (name.identity, found));
    }

    pub fn define_endpoint(&mut self, reference: u16, endpoint: SocketAddr) {
        self.endpoints.insert(reference, endpoint);
    }

    /// Translates a record for this manager's tables.
    ///
    /// # Errors
    ///
    /// Names what this manager does not know.
    pub fn translate(
        &self,
        record: &Record,
        now_ticks: u32,
    ) -> Result<FlowRecord, TranslationError> {
        let (identity, backend) = self
            .backends
            .get(&record.backend)
            .ok_or(TranslationError::Reference)?;
        let service = self.endpoint(record.service)?;
        let source = match record.source {
            CLIENT_ADDRESS => record.client,
            reference => self.endpoint(reference)?.ip(),
        };
        let LiveFields {
            interface,
            mac,
            tag,
            seen_age,
            sequences,
        } = record.live;
        let own = match record.kind {
            RecordKind::Ended => OwnInterface::default(),
            RecordKind::Opened | RecordKind::Present => {
                let own = self.interfaces.get(usize::from(interface));
                own.filter(|it| it.index != 0)
                    .copied()
                    .ok_or(TranslationError::Interface)?
            }
        };
        Ok(FlowRecord {
            client: mapped(record.client),
            service_address: mapped(service.ip()),
            source: mapped(source),
            client_mac: Mac::from(mac).tagged(tag),
            manager_mac: own.mac,
            backend: backend.ok_or(TranslationError::Backend)?,
            client_interface: own.index,
            created_ticks: now_ticks.wrapping_sub(record.created_age),
            last_seen_ticks: now_ticks.wrapping_sub(seen_age),
            sequences,
            client_port: record.client_port.to_be_bytes(),
            service_port: service.port().to_be_bytes(),
            source_port: record.source_port.to_be_bytes(),
            protocol: protocol_number(identity.endpoint.protocol),
            kind: match record.kind {
                RecordKind::Opened => record_kind::OPENED,
                RecordKind::Ended => record_kind::ENDED,
                RecordKind::Present => record_kind::PRESENT,
            },
            ended: record.ended,
            carried: record.carried.into(),
            ..FlowRecord::default()
        })
    }

    fn endpoint(&self, reference: u16) -> Result<SocketAddr, TranslationError> {
        let endpoint = self.endpoints.get(&reference).copied();
        endpoint.ok_or(TranslationError::Reference)
    }
}

/// Returns the backend of this manager that can continue connections of a peer's, preferably of the same service.
fn find(own: &[(u32, Identity)], wanted: &Identity) -> Option<u32> {
    let same = own.iter().find(|(_, it)| it == wanted);
    let same = same.or_else(|| own.iter().find(|(_, it)| it.continues(wanted)));
    same.map(|(id, _)| *id)
}

fn endpoint(address: &[u8; 16], port: [u8; 2]) -> SocketAddr {
    let ip: IpAddr = from_mapped(*address);
    SocketAddr::new(ip, u16::from_be_bytes(port))
}
