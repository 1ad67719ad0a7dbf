//! A configured translation: the service and the address of the worker's own server.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use lb_core::Endpoint;
use thiserror::Error;

use crate::datapath::{name_of, netlink::Routes};

/// A service, and the address of this worker's own server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DsrMapping {
    pub service: Endpoint,
    /// `None`: the source address of the route to the service.
    address: Option<IpAddr>,
    pub(super) port: u16,
}

impl DsrMapping {
    /// Returns the interface at which the service's packets arrive, and the server's address.
    ///
    /// # Errors
    ///
    /// Says why the service cannot be translated.
    pub(super) fn target(&self, routes: &Routes) -> Result<(String, SocketAddr)> {
        let service = self.service;
        let address = service.address.ip();
        let Some(route) = routes.get(&address).and_then(Option::as_ref) else {
            bail!("{service} cannot be translated: there is no route to {address}");
        };
        if route.is_local {
            bail!(
                "{service} cannot be translated: {address} is this machine's own. The DSR translator runs \
                 on workers, not on the manager"
            );
        }
        let interface = name_of(route.interface)
            .with_context(|| format!("interface {} is gone", route.interface))?;
        let target = SocketAddr::new(self.address.unwrap_or(route.source), self.port);
        Ok((interface, target))
    }
}

/// The text is not a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected the service's address, port and, unless it is tcp, protocol, then where this worker's own server \
     listens: 192.168.56.101:80=8081, [2001:db8::1]:53/udp=5353, or 192.168.56.101:80=192.168.56.103:8081"
)]
pub struct InvalidDsrMapping;

impl FromStr for DsrMapping {
    type Err = InvalidDsrMapping;

    fn from_str(text: &str) -> Result<Self, InvalidDsrMapping> {
        let (service, target) = text.split_once('=').ok_or(InvalidDsrMapping)?;
        let service: Endpoint = service.parse().map_err(|_| InvalidDsrMapping)?;
        let (address, port) = match target.parse::<u16>() {
            Ok(port) => (None, port),
            Err(_) => {
                let target: SocketAddr = target.parse().map_err(|_| InvalidDsrMapping)?;
                (Some(target.ip().to_canonical()), target.port())
            }
        };
        let same_family = |ip: IpAddr| ip.is_ipv4() == service.address.is_ipv4();
        if port == 0 || !address.is_none_or(same_family) {
            return Err(InvalidDsrMapping);
        }
        Ok(Self {
            service,
            address,
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Route;

    fn routes(is_local: bool) -> Routes {
        let service: IpAddr = "192.168.56.101".parse().unwrap();
        let route = Route {
            interface: lb_common::maps::LOOPBACK,
            lower_interfaces: std::collections::BTreeSet::new(),
            next_hop: service,
            source: "192.168.56.103".parse().unwrap(),
            is_local,
        };
        [(service, Some(route))].into()
    }

    #[test]
    fn sends_packets_to_the_address_towards_the_service_by_default() {
        for (text, expected) in [
            ("192.168.56.101:80=8081", "192.168.56.103:8081"),
            ("192.168.56.101:80/udp=10.0.0.3:53", "10.0.0.3:53"),
        ] {
            let mapping: DsrMapping = text.parse().unwrap();
            let (interface, target) = mapping.target(&routes(false)).unwrap();
            assert_eq!(
                (interface.as_str(), target),
                ("lo", expected.parse().unwrap())
            );
        }
    }

    #[test]
    fn reports_why_a_service_cannot_be_translated() {
        let mapping: DsrMapping = "192.168.56.101:80=8081".parse().unwrap();
        let of = |routes: &Routes| mapping.target(routes).unwrap_err().to_string();
        assert!(of(&routes(true)).contains("this machine's own"));
        assert!(of(&Routes::new()).contains("no route to 192.168.56.101"));
    }

    #[test]
    fn rejects_an_invalid_mapping() {
        for wrong in [
            "",
            "192.168.56.101:80",
            "192.168.56.101:80=",
            "192.168.56.101:80=0",
            "192.168.56.101:80=65536",
            "192.168.56.101:80=[2001:db8::3]:8081",
            "192.168.56.101:80=worker1:8081",
            "192.168.56.101=8081",
        ] {
            assert_eq!(
                wrong.parse::<DsrMapping>(),
                Err(InvalidDsrMapping),
                "{wrong}"
            );
        }
    }
}
