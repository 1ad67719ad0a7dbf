//! How the core carries the operator's orders out.

use std::collections::BTreeSet;
use std::time::Instant;

use super::admin::{
    AdminAction, AdminCommand, AdminError, AdminOverrides, MAX_WEIGHT_PERCENT, check_reason,
};
use super::pause::check_pause;
use super::reason::fallback_outcome;
use super::service::Selection;
use super::{AdminState, Core, Event, Health};

/// What an order has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandResult {
    /// The services that have no worker for new connections now.
    pub without_worker: Vec<String>,
    /// What the operator may not have meant, one sentence each.
    pub warnings: Vec<String>,
}

impl Core {
    /// Carries out an operator's order, at once and for good: it stands until it is taken back.
    ///
    /// # Errors
    ///
    /// Says whom or what there is not, and changes nothing then.
    pub fn handle_admin_command(
        &mut self,
        order: &AdminCommand,
        now: Instant,
    ) -> Result<CommandResult, AdminError> {
        self.wake(now);
        let index = match self.target(order) {
            Ok(index) => Some(index),
            // Its worker, or the service, is no longer configured.
            Err(_) if self.overrides.is_removed_by(order) => None,
            Err(error) => return Err(error),
        };
        let before = self.overrides.commands();
        self.overrides.apply(order)?;
        self.events.push_back(Event::OperatorOrder {
            order: order.clone(),
        });
        match order.action {
            AdminAction::Pause { for_ms } => self.set_pause(&order.worker, Some(for_ms), now),
            AdminAction::Resume => self.set_pause(&order.worker, None, now),
            _ => {}
        }
        let mut result = CommandResult::default();
        if !order.action.is_removal() {
            let replaced = self.overrides.missing_from(before);
            let warnings =
                replaced.map(|before| format!("this replaces an earlier order: {before}"));
            result.warnings.extend(warnings);
        }
        match index {
            Some(index) => {
                let was_paused = self.workers[index].paused_until.is_some();
                self.overlay(index);
                if was_paused && order.action == AdminAction::Resume {
                    self.report_down_after_pause(index, now);
                }
                self.sync_services(&[index], now);
                result
                    .warnings
                    .extend(self.warn_late_pause(index, order.action));
                self.warn_without_worker(index, &mut result);
            }
            None => result
                .warnings
                .push(format!("no service has {} there", order.worker)),
        }
        Ok(result)
    }

    /// Says which of a worker's services have no worker now, and what becomes of their clients.
    fn warn_without_worker(&self, worker: usize, result: &mut CommandResult) {
        let served: BTreeSet<usize> = self.workers[worker]
            .backends
            .iter()
            .map(|it| it.service)
            .collect();
        let served = served.iter().map(|service| &self.services[*service]);
        for service in served.filter(|service| service.target == Selection::Fallback) {
            let (name, fallback) = (&service.settings.name, service.fallback_name());
            result.without_worker.push(name.clone());
            let fallback = fallback_outcome(fallback);
            result
                .warnings
                .push(format!("{name} has no worker now: {fallback}"));
        }
    }

    /// Says that a pause comes too late for the connections that met a worker's silence.
    fn warn_late_pause(&self, worker: usize, action: AdminAction) -> Option<String> {
        let worker = &self.workers[worker];
        let is_late = matches!(action, AdminAction::Pause { .. }) && worker.health == Health::Down;
        is_late.then(|| {
            format!(
                "{0} is down already: connections of {0} that have sent since then are reset",
                worker.name
            )
        })
    }

    /// Returns the standing orders, to be kept for the next manager.
    pub fn admin_overrides(&self) -> &AdminOverrides {
        &self.overrides
    }

    /// Tells a worker's services what is ordered of it there.
    pub(super) fn overlay(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.paused_until = self.pauses.get(&worker.name).map(|pause| pause.until);
        worker.in_maintenance = !worker.backends.is_empty();
        for place in &worker.backends {
            let service = &mut self.services[place.service];
            let overlay = self.overrides.overlay(&worker.name, &service.settings.name);
            worker.in_maintenance &= overlay
                .effective_state()
                .is_some_and(|hold| hold >= AdminState::Maintenance);
            service.apply_admin_state(place.backend, overlay);
        }
    }

    fn target(&self, order: &AdminCommand) -> Result<usize, AdminError> {
        order.reason.as_deref().map_or(Ok(()), check_reason)?;
        if let AdminAction::Weight { percent } = order.action
            && percent > MAX_WEIGHT_PERCENT
        {
            return Err(AdminError::WeightTooLarge { percent });
        }
        if let AdminAction::Pause { for_ms } = order.action {
            check_pause(for_ms)?;
            if order.service.is_some() {
                return Err(AdminError::PauseOfOneService);
            }
        }
        let Some(&index) = self.by_name.get(&order.worker) else {
            return Err(AdminError::UnknownWorker {
                worker: order.worker.clone(),
                known: self.by_name.keys().cloned().collect(),
            });
        };
        let Some(wanted) = &order.service else {
            return Ok(index);
        };
        let names = || self.services.iter().map(|it| it.settings.name.clone());
        if !names().any(|name| name == *wanted) {
            return Err(AdminError::UnknownService {
                service: wanted.clone(),
                known: names().collect(),
            });
        }
        let places = self.workers[index].backends.iter();
        let services: Vec<String> = places
            .map(|it| self.services[it.service].settings.name.clone())
            .collect();
        if !services.contains(wanted) {
            return Err(AdminError::NotInService {
                worker: order.worker.clone(),
                service: wanted.clone(),
                services,
            });
        }
        Ok(index)
    }
}
