//! The names of the services and backends whose ids a trace has.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use lb_core::{Protocol, ServiceSnapshot};

use crate::datapath::monotonic_ns;

/// The services and backends as the manager has them now.
#[derive(Debug, Clone)]
pub struct Names {
    backends: BTreeMap<u32, NamedBackend>,
    /// By address and protocol, as texts.
    services: BTreeMap<(String, String), String>,
    /// The time at which CLOCK_MONOTONIC was 0.
    epoch: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedBackend {
    pub service: String,
    pub name: String,
    pub address: String,
}

impl Names {
    /// Takes the names from the services' snapshots.
    ///
    /// # Errors
    ///
    /// The clock cannot be read.
    pub fn new(services: &[ServiceSnapshot]) -> Result<Self> {
        let mut names = Self {
            backends: BTreeMap::new(),
            services: BTreeMap::new(),
            epoch: SystemTime::now() - Duration::from_nanos(monotonic_ns()?),
        };
        for service in services {
            let at = (service.address.clone(), service.protocol.to_string());
            names.services.insert(at, service.name.clone());
            for backend in &service.backends {
                let known = NamedBackend {
                    service: service.name.clone(),
                    name: backend.name.clone(),
                    address: backend.address.clone(),
                };
                names.backends.insert(backend.backend_id.0, known);
            }
        }
        Ok(names)
    }

    pub(super) fn backend(&self, id: u32) -> Option<&NamedBackend> {
        self.backends.get(&id)
    }

    pub(super) fn service_at(&self, address: SocketAddr, protocol: Protocol) -> Option<&str> {
        let at = (address.to_string(), protocol.to_string());
        self.services.get(&at).map(String::as_str)
    }

    /// Formats a time of CLOCK_MONOTONIC as in RFC 3339.
    pub(super) fn time(&self, monotonic_ns: u64) -> String {
        let time = self.epoch + Duration::from_nanos(monotonic_ns);
        humantime::format_rfc3339_micros(time).to_string()
    }
}
