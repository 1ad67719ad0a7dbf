//! Reports workers that have few ports left for connections in mode `nat`.

use std::collections::BTreeSet;

use tracing::warn;

use super::Manager;
use lb_core::{BackendId, Event};

/// Ports of a worker in use, in percent, from which on they are scarce, and below which they no longer are.
const SCARCE_PERCENT: u64 = 80;
const SUFFICIENT_PERCENT: u64 = 70;

/// The backends whose ports are scarce.
#[derive(Debug, Default)]
pub(super) struct NatPorts(BTreeSet<BackendId>);

impl Manager {
    /// Compares the open connections of each backend with its ports.
    pub(super) fn check_nat_ports(&mut self) {
        let open = match self.datapath.open_connections() {
            Ok(open) => open,
            Err(error) => return warn!("count the ports in use: {error:#}"),
        };
        for (backend, open) in open {
            let Some(ports) = self.datapath.nat_ports(backend) else {
                continue;
            };
            let percent = open * 100 / ports.max(1);
            let was_scarce = self.nat_ports.0.contains(&backend);
            if percent >= SCARCE_PERCENT && !was_scarce {
                self.nat_ports.0.insert(backend);
            } else if percent < SUFFICIENT_PERCENT && was_scarce {
                self.nat_ports.0.remove(&backend);
            } else {
                continue;
            }
            self.report_nat_ports(backend, open, ports);
        }
    }

    fn report_nat_ports(&self, backend: BackendId, open: u64, ports: u64) {
        let Some((service, worker)) = self.configuration.settings.names(backend) else {
            return;
        };
        let (service, worker) = (service.to_owned(), worker.to_owned());
        let event = match self.nat_ports.0.contains(&backend) {
            true => Event::NatPortsScarce {
                service,
                worker,
                open,
                ports,
            },
            false => Event::NatPortsSufficient {
                service,
                worker,
                open,
                ports,
            },
        };
        self.emitter.emit(&event);
    }
}
