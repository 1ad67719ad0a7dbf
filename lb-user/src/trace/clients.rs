//! The clients of a trace: an address, a network, or either with a port.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::maps::TraceConfig;
use serde::{Deserialize, Serialize};

use crate::datapath::mapped;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Clients {
    network: IpNet,
    port: Option<u16>,
}

impl Clients {
    pub fn new(network: IpNet, port: Option<u16>) -> Self {
        Self { network, port }
    }

    pub fn contains(self, client: SocketAddr) -> bool {
        self.network.contains(&client.ip()) && self.port.is_none_or(|port| port == client.port())
    }

    /// Sets the clients in the programs' filter.
    pub(super) fn apply_to(self, config: &mut TraceConfig) {
        let ones = match self.network {
            IpNet::V4(net) => 96 + net.prefix_len(),
            IpNet::V6(net) => net.prefix_len(),
        };
        let zeros = 128 - u32::from(ones);
        config.client = mapped(self.network.addr());
        config.client_mask = u128::MAX.checked_shl(zeros).unwrap_or(0).to_be_bytes();
        config.client_port = self.port.unwrap_or(0).to_be_bytes();
    }
}

impl FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = |text: &str| -> Option<IpNet> {
            let text: String = text.chars().filter(|it| !"[]".contains(*it)).collect();
            let address = text.parse::<IpAddr>().map(|it| it.to_canonical().into());
            address.or_else(|_| text.parse()).ok()
        };
        let any_port = |network| Self::new(network, None);
        // An IPv6 address without brackets has no port.
        let has_port = text.parse::<SocketAddr>().is_ok() || text.contains('/');
        let parts = text.rsplit_once(':').filter(|_| has_port);
        let with_port = parts.and_then(|(address, port)| {
            let port = port.parse().ok().filter(|port| *port != 0);
            let bracketed = address.starts_with('[') || !address.contains(':');
            Some(Self::new(
                network(address).filter(|_| bracketed)?,
                Some(port?),
            ))
        });
        with_port.or_else(|| network(text).map(any_port)).ok_or_else(|| {
            format!(
                "{text:?} does not name clients: expected ADDRESS, ADDRESS/LENGTH, or either with :PORT, with \
                 brackets around an IPv6 address before it: [2001:db8::7]:4711, [2001:db8::]/32:4711"
            )
        })
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (network, None) => network.fmt(f),
            (IpNet::V4(network), Some(port)) => write!(f, "{network}:{port}"),
            (IpNet::V6(network), Some(port)) => {
                write!(f, "[{}]/{}:{port}", network.addr(), network.prefix_len())
            }
        }
    }
}

impl TryFrom<String> for Clients {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Clients> for String {
    fn from(clients: Clients) -> Self {
        clients.to_string()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::maps::{TraceConfig, TraceEvent};

    use super::*;

    fn is_met(clients: &str, client: &str) -> bool {
        let clients: Clients = clients.parse().unwrap();
        assert_eq!(clients.to_string().parse(), Ok(clients), "{clients}");
        let client: SocketAddr = client.parse().unwrap();
        let mut config = TraceConfig::ALL;
        clients.apply_to(&mut config);
        let mut event = TraceEvent::NONE;
        event.original.source = mapped(client.ip());
        event.original.source_port = client.port().to_be_bytes();
        config.matches(&event)
    }

    #[test]
    fn clients_are_an_address_or_a_network_with_an_optional_port() {
        for (clients, inside, outside) in [
            ("10.0.0.7", "10.0.0.7:1", "10.0.0.8:1"),
            ("10.0.0.7:80", "10.0.0.7:80", "10.0.0.7:81"),
            ("10.0.0.0/8", "10.9.9.9:1", "11.0.0.1:1"),
            ("10.0.0.0/8:80", "10.9.9.9:80", "10.9.9.9:81"),
            ("0.0.0.0/0", "10.9.9.9:80", "[2001:db8::1]:80"),
            ("::/0", "[2001:db8::1]:80", "[2001:db8::1]:0"),
            ("2001:db8::7", "[2001:db8::7]:1", "[2001:db8::8]:1"),
            ("[2001:db8::7]:80", "[2001:db8::7]:80", "[2001:db8::7]:81"),
            ("2001:db8::/32", "[2001:db8:9::7]:1", "[2001:db9::7]:1"),
            (
                "[2001:db8::]/32:80",
                "[2001:db8:9::7]:80",
                "[2001:db8::]:81",
            ),
        ] {
            let are = |client: &str| {
                let clients: Clients = clients.parse().unwrap();
                clients.contains(client.parse().unwrap())
            };
            assert!(are(inside), "{clients} {inside}");
            assert!(!are(outside) || clients == "::/0", "{clients} {outside}");
            assert!(is_met(clients, inside), "{clients} {inside}");
            if clients != "::/0" {
                assert!(!is_met(clients, outside), "{clients} {outside}");
            }
        }
    }

    #[test]
    fn other_texts_are_refused_as_clients() {
        for wrong in [
            "",
            "worker1",
            "10.0.0.0/33",
            "10.0.0.7:",
            "10.0.0.7:0",
            "10.0.0.7:70000",
            "10.0.0.0/8:",
            "[2001:db8::7]:",
        ] {
            assert!(wrong.parse::<Clients>().is_err(), "{wrong}");
        }
    }
}
