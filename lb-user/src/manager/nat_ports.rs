//! Reports workers that have few ports left for connections in mode `nat`.

use std::{collections::BTreeSet, time::Instant};

use tracing::warn;

use super::{Manager, TICK};
use lb_core::{BackendId, Event};

/// The percentage of a worker's ports in use from which they are scarce, and below which they no longer are.
const SCARCE_PERCENT: u64 = 80;
const SUFFICIENT_PERCENT: u64 = 70;

#[derive(Debug, Default)]
pub(super) struct NatPorts {
    /// The backends whose ports are scarce.
    scarce: BTreeSet<BackendId>,
    /// The open connections that were last read for the core, and when they were read.
    open: Option<(Instant, Vec<(BackendId, u64)>)>,
}

impl NatPorts {
    pub fn record(&mut self, open: Vec<(BackendId, u64)>, now: Instant) {
        self.open = Some((now, open));
    }
}

impl Manager {
    /// Compares the open connections of each backend with its ports. It reads them only if they were not read for the
    /// core since the last check.
    pub(super) fn check_nat_ports(&mut self) {
        let recent = self.nat_ports.open.take();
        let recent = recent.filter(|(read, _)| read.elapsed() < TICK);
        let open = match recent.map_or_else(|| self.datapath.open_connections(), |it| Ok(it.1)) {
            Ok(open) => open,
            Err(error) => return warn!("count the ports in use: {error:#}"),
        };
        for (backend, open) in open {
            let Some(ports) = self.datapath.nat_ports(backend) else {
                continue;
            };
            let percent = open * 100 / ports.max(1);
            let was_scarce = self.nat_ports.scarce.contains(&backend);
            if percent >= SCARCE_PERCENT && !was_scarce {
                self.nat_ports.scarce.insert(backend);
            } else if percent < SUFFICIENT_PERCENT && was_scarce {
                self.nat_ports.scarce.remove(&backend);
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
        let event = match self.nat_ports.scarce.contains(&backend) {
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
