//! Compares map `selection` with the manager's choices. Another program, such as bpftool, may have written it.

use std::time::Instant;

use lb_common::maps::SPREAD;
use lb_core::{ALL_WORKERS, NO_BACKEND, ServiceSnapshot, milliseconds};
use tracing::warn;

use super::Manager;
use crate::status::KernelSelection;

/// A service whose entry in map `selection` is not the manager's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignSelection {
    service: String,
    selected: u32,
    since: Instant,
}

impl Manager {
    /// Compares the map with the choices, and records since when they differ.
    pub(super) fn check_selections(&mut self) {
        let now = Instant::now();
        let found = self.foreign_selections_in(&self.core.snapshot(now).services, now);
        let known = &self.foreign_selections;
        for ForeignSelection {
            service, selected, ..
        } in found.iter().filter(|it| !known.contains(it))
        {
            warn!(
                "{service}: map selection holds {selected}, which the manager did not write: it stays \
                 until the manager's next choice"
            );
        }
        self.foreign_selections = found;
    }

    fn foreign_selections_in(
        &self,
        services: &[ServiceSnapshot],
        now: Instant,
    ) -> Vec<ForeignSelection> {
        let settings = self.configuration.settings.services.iter();
        let pairs = settings.filter_map(|it| {
            let service = services.iter().find(|service| service.name == it.name)?;
            // An entry that cannot be read is reported by the next write.
            Some((service, self.datapath.selected(it.id).ok()?))
        });
        let foreign = pairs.filter(|(service, selected)| chosen(service) != Some(*selected));
        let foreign = foreign.map(|(service, selected)| {
            let known = self.foreign_selections.iter();
            let mut known =
                known.filter(|it| it.service == service.name && it.selected == selected);
            ForeignSelection {
                service: service.name.clone(),
                selected,
                since: known.next().map_or(now, |it| it.since),
            }
        });
        foreign.collect()
    }

    /// Returns the map's entries that are not the manager's choice, for the status.
    pub(super) fn kernel_selections(
        &self,
        services: &[ServiceSnapshot],
        now: Instant,
    ) -> Vec<KernelSelection> {
        let foreign = self.foreign_selections_in(services, now).into_iter();
        let shown = foreign.filter_map(|it| {
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

/// Returns the map's value for the manager's choice.
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
