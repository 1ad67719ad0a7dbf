//! Whether the kernel's map still selects what the manager chose: a person with bpftool may have written it.

use std::time::Instant;

use lb_common::maps::SPREAD;
use lb_core::{ALL_WORKERS, NO_BACKEND, ServiceSnapshot, milliseconds};
use tracing::warn;

use super::Manager;
use crate::status::KernelSelection;

/// A service whose entry in map `selection` is not the manager's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moved {
    service: String,
    selected: u32,
    since: Instant,
}

impl Manager {
    /// Compares the map with the choices, and remembers since when they differ.
    pub(super) fn check_selections(&mut self) {
        let now = Instant::now();
        let found = self.moved_selections(&self.core.snapshot(now).services, now);
        for moved in &found {
            if !self.moved.contains(moved) {
                let Moved {
                    service, selected, ..
                } = moved;
                warn!(
                    "{service}: map selection holds {selected}, which the manager did not write: it \
                     stays until the manager's next choice"
                );
            }
        }
        self.moved = found;
    }

    fn moved_selections(&self, services: &[ServiceSnapshot], now: Instant) -> Vec<Moved> {
        let settings = self.configuration.settings.services.iter();
        let pairs = settings.filter_map(|it| {
            let service = services.iter().find(|service| service.name == it.name)?;
            // An entry that cannot be read is reported by the next write.
            Some((service, self.datapath.selected(it.id).ok()?))
        });
        let moved = pairs.filter(|(service, selected)| chosen(service) != Some(*selected));
        let moved = moved.map(|(service, selected)| {
            let known = self.moved.iter();
            let mut known =
                known.filter(|it| it.service == service.name && it.selected == selected);
            Moved {
                service: service.name.clone(),
                selected,
                since: known.next().map_or(now, |it| it.since),
            }
        });
        moved.collect()
    }

    /// Returns what the map says of the services whose entry is not the manager's choice.
    pub(super) fn kernel_selections(
        &self,
        services: &[ServiceSnapshot],
        now: Instant,
    ) -> Vec<KernelSelection> {
        let moved = self.moved_selections(services, now).into_iter();
        let shown = moved.filter_map(|it| {
            let service = services.iter().find(|service| service.name == it.service)?;
            Some(KernelSelection {
                selected: name(service, it.selected),
                service: it.service,
                since_ms: milliseconds(now.saturating_duration_since(it.since)),
            })
        });
        shown.collect()
    }
}

/// The value of the map by which the kernel does what the manager chose.
fn chosen(service: &ServiceSnapshot) -> Option<u32> {
    match service.selected.as_str() {
        ALL_WORKERS => Some(SPREAD),
        NO_BACKEND => Some(0),
        name => {
            let mut backends = service.backends.iter();
            backends
                .find(|it| it.name == name)
                .map(|it| it.backend_id.0)
        }
    }
}

fn name(service: &ServiceSnapshot, selected: u32) -> String {
    let mut backends = service.backends.iter();
    match (selected, backends.find(|it| it.backend_id.0 == selected)) {
        (SPREAD, _) => ALL_WORKERS.to_owned(),
        (0, _) => NO_BACKEND.to_owned(),
        (_, Some(backend)) => backend.name.clone(),
        (id, None) => format!("backend {id} of another service"),
    }
}
