//! The commands in force.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{AdminAction, AdminCommand, AdminError, AdminState, Audited};
use crate::health::Health;

/// What operators have set for one worker, in one service or in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminOverride {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Audited<AdminState>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<Audited<u32>>,
    /// The length of a pause, in milliseconds from the command on.
    #[serde(default, rename = "pause_ms", skip_serializing_if = "Option::is_none")]
    pub pause: Option<Audited<u64>>,
}

impl AdminOverride {
    /// Returns the state in force; a weight of 0 is a drain.
    pub fn effective_state(&self) -> Option<AdminState> {
        let weightless = self.weight_percent() == 0;
        let state = self.state.as_ref().map(|it| it.value);
        state.or(weightless.then_some(AdminState::Drain))
    }

    /// Raises the state to the one that the worker's source requests.
    #[must_use]
    pub fn at_least(mut self, requested: Option<&Audited<AdminState>>) -> Self {
        if let Some(requested) = requested.filter(|it| self.effective_state() < Some(it.value)) {
            self.state = Some(requested.clone());
        }
        self
    }

    /// Returns the state of a backend whose worker has this health.
    pub fn effective_health(&self, health: Health) -> Health {
        match (self.effective_state(), &self.pause) {
            (Some(AdminState::Terminate), _) | (_, None) => {
                health.under_admin_state(self.effective_state())
            }
            (_, Some(_)) => Health::Paused,
        }
    }

    pub fn weight_percent(&self) -> u32 {
        self.weight_percent.as_ref().map_or(100, |it| it.value)
    }

    fn is_empty(&self) -> bool {
        self.state.is_none() && self.weight_percent.is_none() && self.pause.is_none()
    }
}

impl Health {
    /// Returns the state of a backend whose worker has this health, under an operator's state.
    pub fn under_admin_state(self, state: Option<AdminState>) -> Self {
        match (self, state) {
            (own, None) => own,
            (_, Some(AdminState::Terminate)) => Self::Terminated,
            (worse @ (Self::Down | Self::Unhealthy), Some(_)) => worse,
            (_, Some(AdminState::Maintenance)) => Self::Maintenance,
            (_, Some(AdminState::Drain)) => Self::Draining,
        }
    }
}

/// All commands in force. The state file holds its JSON for the next manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminOverrides(Vec<WorkerOverride>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WorkerOverride {
    worker: String,
    /// `None` means all.
    service: Option<String>,
    #[serde(flatten)]
    set: AdminOverride,
}

impl WorkerOverride {
    fn commands(&self) -> impl Iterator<Item = AdminCommand> {
        let AdminOverride {
            state,
            weight_percent,
            pause,
        } = &self.set;
        let state = state.as_ref();
        let state = state.map(|it| self.command(it, |state| AdminAction::SetState { state }));
        let weight = weight_percent.as_ref();
        let weight = weight.map(|it| self.command(it, |percent| AdminAction::Weight { percent }));
        let pause = pause.as_ref();
        let pause = pause.map(|it| self.command(it, |for_ms| AdminAction::Pause { for_ms }));
        state.into_iter().chain(weight).chain(pause)
    }

    fn command<T: Copy>(&self, set: &Audited<T>, action: fn(T) -> AdminAction) -> AdminCommand {
        AdminCommand {
            worker: self.worker.clone(),
            service: self.service.clone(),
            action: action(set.value),
            by: set.by.clone(),
            at_ms: set.at_ms,
            reason: set.reason.clone(),
        }
    }
}

impl AdminOverrides {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the commands in force for `worker` in `service`: of two states the greater one, of two weights the one
    /// of the service.
    pub fn effective(&self, worker: &str, service: &str) -> AdminOverride {
        let general = self.get(worker, None);
        let special = self.get(worker, Some(service));
        let states = [general, special].into_iter().flatten();
        let states = states.filter_map(|it| it.state.clone());
        let weight = |set: Option<&AdminOverride>| set.and_then(|it| it.weight_percent.clone());
        AdminOverride {
            state: states.max_by_key(|state| state.value),
            weight_percent: weight(special).or_else(|| weight(general)),
            pause: general.and_then(|set| set.pause.clone()),
        }
    }

    /// Returns the commands in force.
    pub fn commands(&self) -> Vec<AdminCommand> {
        self.0.iter().flat_map(WorkerOverride::commands).collect()
    }

    /// Returns the paused workers, each with its pause in milliseconds.
    pub fn pauses(&self) -> impl Iterator<Item = (&str, &Audited<u64>)> {
        let entries = self.0.iter();
        entries.filter_map(|it| Some((it.worker.as_str(), it.set.pause.as_ref()?)))
    }

    /// Returns the workers and services for which a command is in force.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0
            .iter()
            .map(|it| (it.worker.as_str(), it.service.as_deref()))
    }

    /// Whether a command only ends commands in force. Their worker need not be configured.
    pub(crate) fn is_removed_by(&self, command: &AdminCommand) -> bool {
        let is_affected = |(worker, service): (&str, Option<&str>)| {
            worker == command.worker
                && (command.service.is_none() || command.service.as_deref() == service)
        };
        command.action.is_removal() && self.targets().any(is_affected)
    }

    /// Returns the earlier commands that are no longer in force.
    pub(crate) fn replaced(
        &self,
        earlier: Vec<AdminCommand>,
    ) -> impl Iterator<Item = AdminCommand> {
        let commands = self.commands();
        let now: BTreeSet<String> = commands.iter().map(AdminCommand::to_string).collect();
        let earlier = earlier.into_iter();
        earlier.filter(move |command| !now.contains(&command.to_string()))
    }

    /// Applies a command.
    ///
    /// # Errors
    ///
    /// Returns that the state is set for all services, and cannot end for one of them.
    pub(crate) fn apply(&mut self, command: &AdminCommand) -> Result<(), AdminError> {
        match command.action {
            AdminAction::SetState { state } => {
                self.entry(command).state = Some(Audited::new(state, command));
            }
            AdminAction::Weight { percent: 100 } if command.service.is_none() => {
                self.update_worker(&command.worker, |set| set.weight_percent = None);
            }
            AdminAction::Weight { percent } => {
                if command.service.is_none() {
                    self.update_worker(&command.worker, |set| set.weight_percent = None);
                }
                self.entry(command).weight_percent = Some(Audited::new(percent, command));
            }
            AdminAction::Pause { for_ms } => {
                self.entry(command).pause = Some(Audited::new(for_ms, command));
            }
            AdminAction::Resume => self.update_worker(&command.worker, |set| set.pause = None),
            AdminAction::Undrain => self.undrain(command)?,
        }
        self.0.retain(|entry| !entry.set.is_empty());
        Ok(())
    }

    /// Removes a pause that is over.
    pub(crate) fn end_pause(&mut self, worker: &str) {
        self.update_worker(worker, |set| set.pause = None);
        self.0.retain(|entry| !entry.set.is_empty());
    }

    fn undrain(&mut self, command: &AdminCommand) -> Result<(), AdminError> {
        let Some(service) = &command.service else {
            self.update_worker(&command.worker, |set| set.state = None);
            return Ok(());
        };
        let general = self.get(&command.worker, None);
        if let Some(state) = general.and_then(|set| set.state.as_ref()) {
            return Err(AdminError::SetForAllServices {
                worker: command.worker.clone(),
                service: service.clone(),
                state: state.value,
            });
        }
        self.entry(command).state = None;
        Ok(())
    }

    fn get(&self, worker: &str, service: Option<&str>) -> Option<&AdminOverride> {
        let mut entries = self.0.iter();
        entries
            .find(|it| it.worker == worker && it.service.as_deref() == service)
            .map(|it| &it.set)
    }

    fn entry(&mut self, command: &AdminCommand) -> &mut AdminOverride {
        let same =
            |it: &WorkerOverride| it.worker == command.worker && it.service == command.service;
        let index = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(WorkerOverride {
                worker: command.worker.clone(),
                service: command.service.clone(),
                set: AdminOverride::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[index].set
    }

    fn update_worker(&mut self, worker: &str, update: impl Fn(&mut AdminOverride)) {
        let entries = self.0.iter_mut().filter(|it| it.worker == worker);
        entries.for_each(|entry| update(&mut entry.set));
    }
}
