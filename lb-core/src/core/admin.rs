//! How the core applies commands of operators.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Core;
use crate::admin::{
    AdminAction, AdminCommand, AdminError, AdminOverrides, AdminState, CommandResult,
};
use crate::event::Event;
use crate::health::Health;
use crate::reason::fallback_outcome;
use crate::service::Selection;

impl Core {
    /// Applies a command. It stays in force, also after a restart, until another command ends it.
    ///
    /// # Errors
    ///
    /// Returns the value that is out of range or unknown; nothing has changed then.
    pub fn handle_admin_command(
        &mut self,
        command: &AdminCommand,
        now: Instant,
    ) -> Result<CommandResult, AdminError> {
        self.detect_stall(now);
        command.check()?;
        let index = match self.find_worker(command) {
            Ok(index) => Some(index),
            // It ends a command about a worker, or a service, that is no longer configured.
            Err(_) if self.overrides.is_removed_by(command) => None,
            Err(error) => return Err(error),
        };
        if command.action == AdminAction::Resume
            && let Some(index) = index.filter(|&index| self.is_silent_in_pause(index, now))
        {
            return Ok(self.resume_when_back(index, command, now));
        }
        let before = self.overrides.commands();
        self.overrides.apply(command)?;
        self.events.push_back(Event::AdminCommandApplied {
            order: command.clone(),
        });
        match command.action {
            AdminAction::Pause { for_ms } => self.set_pause(&command.worker, Some(for_ms), now),
            AdminAction::Resume => self.set_pause(&command.worker, None, now),
            _ => {}
        }
        let mut result = CommandResult::default();
        if !command.action.is_removal() {
            let replaced = self.overrides.replaced(before);
            (result.warnings)
                .extend(replaced.map(|before| format!("this replaces an earlier order: {before}")));
        }
        match index {
            Some(index) => {
                let was_paused = self.workers[index].paused_until.is_some();
                self.apply_admin_states(index);
                if was_paused && command.action == AdminAction::Resume {
                    self.report_down_after_pause(index, now);
                }
                self.sync_services(&[index], now);
                (result.warnings).extend(self.warn_late_pause(index, command.action));
                self.warn_without_worker(index, &mut result);
            }
            None => (result.warnings).push(format!("no service has {} there", command.worker)),
        }
        Ok(result)
    }

    /// Warns of the worker's services that have no worker now.
    fn warn_without_worker(&self, worker: usize, result: &mut CommandResult) {
        let backends = self.workers[worker].backends.iter();
        let served: BTreeSet<usize> = backends.map(|at| at.service).collect();
        let served = served.iter().map(|service| &self.services[*service]);
        for service in served.filter(|it| it.selection == Selection::Fallback) {
            let (name, fallback) = (&service.settings.name, service.settings.fallback_name());
            result.without_worker.push(name.clone());
            let outcome = fallback_outcome(fallback);
            result
                .warnings
                .push(format!("{name} has no worker now: {outcome}"));
        }
    }

    /// Warns of a pause that comes after the worker went down.
    fn warn_late_pause(&self, worker: usize, action: AdminAction) -> Option<String> {
        let worker = &self.workers[worker];
        let is_late = matches!(action, AdminAction::Pause { .. }) && worker.health == Health::Down;
        is_late.then(|| {
            format!(
                "{0} is down already: memlb has reset those of its connections that sent a packet since then",
                worker.name
            )
        })
    }

    /// Returns what operators have set, to be stored for the next manager.
    pub fn admin_overrides(&self) -> &AdminOverrides {
        &self.overrides
    }

    /// Applies what operators have set for a worker to its services.
    pub(super) fn apply_admin_states(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.paused_until = self.pauses.get(&worker.name).map(|pause| pause.until);
        worker.in_maintenance = !worker.backends.is_empty();
        for at in &worker.backends {
            let service = &mut self.services[at.service];
            let wanted = service.settings.backends[at.backend].source_state.as_ref();
            let set = self
                .overrides
                .effective(&worker.name, &service.settings.name)
                .at_least(wanted);
            worker.in_maintenance &= set
                .effective_state()
                .is_some_and(|state| state >= AdminState::Maintenance);
            service.apply_admin_state(at.backend, set);
        }
    }

    /// Finds the worker that a command is about.
    fn find_worker(&self, command: &AdminCommand) -> Result<usize, AdminError> {
        let Some(&index) = self.by_name.get(&command.worker) else {
            return Err(AdminError::UnknownWorker {
                worker: command.worker.clone(),
                known: self.by_name.keys().cloned().collect(),
            });
        };
        let Some(wanted) = &command.service else {
            return Ok(index);
        };
        let names = || self.services.iter().map(|it| it.settings.name.clone());
        if !names().any(|name| name == *wanted) {
            return Err(AdminError::UnknownService {
                service: wanted.clone(),
                known: names().collect(),
            });
        }
        let backends = self.workers[index].backends.iter();
        let services: Vec<String> = backends
            .map(|at| self.services[at.service].settings.name.clone())
            .collect();
        if !services.contains(wanted) {
            return Err(AdminError::NotInService {
                worker: command.worker.clone(),
                service: wanted.clone(),
                services,
            });
        }
        Ok(index)
    }
}
