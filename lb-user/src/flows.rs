//! `memlb flows`: connections with the names of services and workers.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_core::{BackendSnapshot, Protocol, ServiceSnapshot, milliseconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{Connection, ConnectionState},
    peer::PeerStatus,
    trace::Clients,
};

/// Selects connections; all given criteria must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowFilter {
    pub client: Option<Clients>,
    pub worker: Option<String>,
    pub service: Option<String>,
    /// Also select ended connections whose entries are still in the table.
    #[serde(default)]
    pub ended: bool,
}

/// A client, or one of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl From<Client> for Clients {
    fn from(client: Client) -> Self {
        Self::new(client.address.into(), client.port)
    }
}

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self {
                address: address.to_canonical(),
                port: None,
            });
        }
        match text.parse::<SocketAddr>() {
            Ok(client) => Ok(Self {
                address: client.ip().to_canonical(),
                port: Some(client.port()),
            }),
            Err(_) => Err(format!(
                "{text:?} is not a client: expected ADDRESS or ADDRESS:PORT, with brackets around an \
                 IPv6 address before a port: [2001:db8::7]:4711"
            )),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// Connections that match a [`FlowFilter`], the youngest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// Number of matching connections; `flows` may be shorter because of the limit.
    pub total: usize,
    pub flows: Vec<FlowRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowRow {
    pub protocol: Protocol,
    pub client: String,
    pub service: String,
    pub service_address: String,
    /// Absent if the worker is no longer configured.
    pub worker: Option<String>,
    pub backend_id: u32,
    pub worker_address: String,
    pub state: ConnectionState,
    pub age_ms: u64,
    pub idle_ms: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The manager's address from which its packets reach the worker; absent where that is the client's.
    pub nat_source: Option<IpAddr>,
    /// The peer that admitted it, if its NAT address, or the absence of packets here, shows that.
    pub admitted_by: Option<String>,
}

impl Flows {
    /// Adds the names of services and workers to the connections.
    pub fn new(
        connections: Vec<Connection>,
        services: &[ServiceSnapshot],
        filter: &FlowFilter,
        limit: usize,
    ) -> Self {
        let mut known: BTreeMap<u32, (&str, &BackendSnapshot)> = BTreeMap::new();
        for service in services {
            for backend in &service.backends {
                known.insert(backend.backend_id.0, (&service.name, backend));
            }
        }
        let connections = connections.into_iter();
        let mut flows: Vec<FlowRow> = connections
            .filter(|it| filter.includes(it))
            .map(|it| row(&it, known.get(&it.backend).copied()))
            .filter(|row| filter.matches(row))
            .collect();
        let total = flows.len();
        flows.truncate(limit);
        Self { total, flows }
    }

    /// Names the peers that admitted connections.
    #[must_use]
    pub fn with_peers(mut self, peers: &[PeerStatus]) -> Self {
        self.flows.iter_mut().for_each(|row| row.name_peer(peers));
        self
    }
}

impl FlowRow {
    /// Names the peer that admitted the connection: by its NAT address, or because no packet has passed here yet.
    pub fn name_peer(&mut self, peers: &[PeerStatus]) {
        let peer = match self.nat_source {
            Some(source) => peers.iter().find(|it| it.nat_sources.contains(&source)),
            None if peers.len() == 1 && !self.is_carried() => peers.first(),
            None => None,
        };
        self.admitted_by = peer.map(|it| it.name.clone());
    }

    /// Whether packets of it have passed this manager; otherwise a peer has reported it.
    pub fn is_carried(&self) -> bool {
        self.bytes_in + self.bytes_out > 0
    }
}

impl FlowFilter {
    /// Whether the connection meets the criteria that do not need names.
    fn includes(&self, connection: &Connection) -> bool {
        let client = self.client;
        client.is_none_or(|clients| clients.contains(connection.client))
            && (self.ended || connection.state != ConnectionState::Ended)
    }

    fn matches(&self, row: &FlowRow) -> bool {
        let service = self.service.as_ref();
        let worker = self.worker.as_ref();
        service.is_none_or(|service| row.service == *service)
            && worker.is_none_or(|worker| row.worker.as_ref() == Some(worker))
    }
}

fn row(connection: &Connection, known: Option<(&str, &BackendSnapshot)>) -> FlowRow {
    let configured = || known.map(|(_, backend)| backend.address.clone());
    let address = connection.backend_address.map(|it| it.to_string());
    FlowRow {
        protocol: connection.protocol,
        client: connection.client.to_string(),
        service: known.map_or_else(String::new, |(service, _)| service.to_owned()),
        service_address: connection.service.to_string(),
        worker: known.map(|(_, backend)| backend.name.clone()),
        backend_id: connection.backend,
        worker_address: address.or_else(configured).unwrap_or_default(),
        state: connection.state,
        age_ms: milliseconds(connection.age),
        idle_ms: milliseconds(connection.idle),
        bytes_in: connection.bytes_in,
        bytes_out: connection.bytes_out,
        nat_source: connection.nat_source,
        admitted_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_with_or_without_a_port() {
        let is =
            |client: Client, other: &str| Clients::from(client).contains(other.parse().unwrap());
        let client: Client = "10.0.0.7:4711".parse().unwrap();
        assert!(is(client, "10.0.0.7:4711"));
        assert!(!is(client, "10.0.0.7:4712"));
        let client: Client = "10.0.0.7".parse().unwrap();
        assert!(is(client, "10.0.0.7:4712"));
        let client: Client = "[2001:db8::7]:4711".parse().unwrap();
        assert!(is(client, "[2001:db8::7]:4711"));
        assert!(!is(client, "[2001:db8::7]:4712"));
        assert_eq!(client.to_string(), "[2001:db8::7]:4711");
        let client: Client = "2001:db8::7".parse().unwrap();
        assert!(is(client, "[2001:db8::7]:4712"));
        assert!(!is(client, "10.0.0.7:4711"));
        for wrong in [
            "",
            "worker1",
            "10.0.0.7:",
            "10.0.0.7:http",
            "10.0.0.7:70000",
            "2001:db8::7:80:",
            "[2001:db8::7]:",
        ] {
            assert!(wrong.parse::<Client>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_connection_names_the_peer_that_admitted_it() {
        let row = |nat_source: Option<&str>, bytes_in| FlowRow {
            protocol: Protocol::Tcp,
            client: "10.0.0.7:4711".to_owned(),
            service: "web".to_owned(),
            service_address: "192.168.56.101:80".to_owned(),
            worker: None,
            backend_id: 1,
            worker_address: String::new(),
            state: ConnectionState::Open,
            age_ms: 0,
            idle_ms: 0,
            bytes_in,
            bytes_out: 0,
            nat_source: nat_source.map(|it| it.parse().unwrap()),
            admitted_by: None,
        };
        let peer = |name: &str, source: &str| PeerStatus {
            name: name.to_owned(),
            nat_sources: vec![source.parse().unwrap()],
            ..PeerStatus::default()
        };
        let rows = vec![
            row(Some("10.0.1.1"), 9),
            row(Some("10.0.1.2"), 9),
            row(None, 0),
            row(None, 9),
        ];
        let admitted = |peers: &[PeerStatus]| -> Vec<Option<String>> {
            let flows = Flows {
                total: rows.len(),
                flows: rows.clone(),
            };
            let flows = flows.with_peers(peers).flows.into_iter();
            flows.map(|it| it.admitted_by).collect()
        };
        let two = [peer("manager2", "10.0.1.2"), peer("manager3", "10.0.1.3")];
        let manager2 = || Some("manager2".to_owned());
        assert_eq!(admitted(&two), [None, manager2(), None, None]);
        assert_eq!(admitted(&two[..1]), [None, manager2(), manager2(), None]);
        assert_eq!(admitted(&[]), [None, None, None, None]);
    }
}
