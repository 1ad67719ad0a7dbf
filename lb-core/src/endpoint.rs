//! An address with its protocol, as `192.168.56.101:80/tcp`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

lb_common::named_enum! {
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Protocol {
        #[default]
        Tcp = "tcp",
        Udp = "udp",
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The address, port and protocol to which clients connect. No two services have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub protocol: Protocol,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// The text is not an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected an address in numbers, a port, and the protocol unless it is tcp: 192.168.56.101:80, or \
     [2001:db8::1]:53/udp"
)]
pub struct ParseEndpointError;

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = Protocol::ALL.into_iter().find(|it| it.name() == protocol);
        let address: SocketAddr = address.parse().map_err(|_| ParseEndpointError)?;
        if address.port() == 0 {
            return Err(ParseEndpointError);
        }
        Ok(Self {
            address: SocketAddr::new(address.ip().to_canonical(), address.port()),
            protocol: protocol.ok_or(ParseEndpointError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_text_round_trips() {
        for text in [
            "192.168.56.101:80/tcp",
            "192.168.56.101:53/udp",
            "[2001:db8::1]:80/tcp",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        let usual: Endpoint = "192.168.56.101:80".parse().unwrap();
        assert_eq!(usual.protocol, Protocol::Tcp);
        let mapped: Endpoint = "[::ffff:192.168.56.101]:80".parse().unwrap();
        assert_eq!(mapped, usual);
        for wrong in [
            "",
            "192.168.56.101",
            "192.168.56.101:0",
            "192.168.56.101:80/",
            "192.168.56.101:80/sctp",
            "2001:db8::1/tcp",
            "worker1:80/tcp",
        ] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
