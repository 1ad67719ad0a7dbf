//! What is in force.

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
    /// In milliseconds from the command on.
    #[serde(default, rename = "pause_ms", skip_serializing_if = "Option::is_none")]
    pub pause: Option<Audited<u64>>,
}

impl AdminOverride {
    /// Returns the state in force; a weight of 0 is a drain.
    pub fn effective_state(&self) -> Option<AdminState> {
        let weightless = self.weight_percent() == 0;
        let hold = self.state.as_ref().map(|hold| hold.value);
        hold.or(weightless.then_some(AdminState::Drain))
    }

    /// Adds the state that the worker's source wants, unless this one stops as much.
    #[must_use]
    pub fn at_least(mut self, wanted: Option<&Audited<AdminState>>) -> Self {
        let wanted = wanted.filter(|it| self.effective_state() < Some(it.value));
        if let Some(wanted) = wanted {
            self.state = Some(wanted.clone());
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
    /// Returns the state of a backend whose worker has this health.
    pub fn under_admin_state(self, hold: Option<AdminState>) -> Self {
        match (self, hold) {
            (own, None) => own,
            (_, Some(AdminState::Terminate)) => Self::Terminated,
            (worse @ (Self::Down | Self::Unhealthy), Some(_)) => worse,
            (_, Some(AdminState::Maintenance)) => Self::Maintenance,
            (_, Some(AdminState::Drain)) => Self::Draining,
        }
    }
}

/// Everything that operators have set. Its JSON is stored for the next manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminOverrides(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    worker: String,
    /// `None` means all.
    service: Option<String>,
    #[serde(flatten)]
    set: AdminOverride,
}

impl Entry {
    fn commands(&self) -> impl Iterator<Item = AdminCommand> {
        let order = |action, by: &str, at_ms, reason: &Option<String>| AdminCommand {
            worker: self.worker.clone(),
            service: self.service.clone(),
            action,
            by: by.to_owned(),
            at_ms,
            reason: reason.clone(),
        };
        let hold = self.set.state.as_ref().map(|mark| {
            let action = AdminAction::SetState { state: mark.value };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let weight = self.set.weight_percent.as_ref().map(|mark| {
            let percent = mark.value;
            let action = AdminAction::Weight { percent };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let pause = self.set.pause.as_ref().map(|mark| {
            let action = AdminAction::Pause { for_ms: mark.value };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        hold.into_iter().chain(weight).chain(pause)
    }
}

impl AdminOverrides {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what is in force for `worker` in `service`: of two states the one that stops more, of two
    /// weights the one of the service.
    pub fn effective(&self, worker: &str, service: &str) -> AdminOverride {
        let general = self.get(worker, None);
        let special = self.get(worker, Some(service));
        let hold = |set: Option<&AdminOverride>| set.and_then(|it| it.state.clone());
        let weight = |set: Option<&AdminOverride>| set.and_then(|it| it.weight_percent.clone());
        let holds = [hold(general), hold(special)].into_iter().flatten();
        AdminOverride {
            state: holds.max_by_key(|hold| hold.value),
            weight_percent: weight(special).or_else(|| weight(general)),
            pause: general.and_then(|set| set.pause.clone()),
        }
    }

    /// Returns the commands in force.
    pub fn commands(&self) -> Vec<AdminCommand> {
        self.0.iter().flat_map(Entry::commands).collect()
    }

    /// Returns the paused workers, each with its pause in milliseconds.
    pub fn pauses(&self) -> impl Iterator<Item = (&str, &Audited<u64>)> {
        let entries = self.0.iter();
        entries.filter_map(|it| Some((it.worker.as_str(), it.set.pause.as_ref()?)))
    }

    /// Returns the workers and services that anything is set for.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0
            .iter()
            .map(|it| (it.worker.as_str(), it.service.as_deref()))
    }

    /// Whether a command only ends what is in force, also of a worker that is not configured.
    pub(crate) fn is_removed_by(&self, command: &AdminCommand) -> bool {
        let wanted = |(worker, service): (&str, Option<&str>)| {
            worker == command.worker
                && (command.service.is_none() || command.service.as_deref() == service)
        };
        command.action.is_removal() && self.targets().any(wanted)
    }

    /// Returns those of the earlier commands that are not in force any more.
    pub(crate) fn missing_from(
        &self,
        earlier: Vec<AdminCommand>,
    ) -> impl Iterator<Item = AdminCommand> {
        let now: BTreeSet<String> = self
            .commands()
            .iter()
            .map(AdminCommand::to_string)
            .collect();
        let earlier = earlier.into_iter();
        earlier.filter(move |order| !now.contains(&order.to_string()))
    }

    /// Applies a command.
    ///
    /// # Errors
    ///
    /// The state was set for all services, and cannot be ended for one.
    pub(crate) fn apply(&mut self, command: &AdminCommand) -> Result<(), AdminError> {
        match command.action {
            AdminAction::SetState { state } => {
                self.entry(command).state = Some(Audited::new(state, command));
            }
            AdminAction::Weight { percent: 100 } if command.service.is_none() => {
                self.of_worker(command, |set| set.weight_percent = None);
            }
            AdminAction::Weight { percent } => {
                if command.service.is_none() {
                    self.of_worker(command, |set| set.weight_percent = None);
                }
                self.entry(command).weight_percent = Some(Audited::new(percent, command));
            }
            AdminAction::Pause { for_ms } => {
                self.entry(command).pause = Some(Audited::new(for_ms, command));
            }
            AdminAction::Resume => self.of_worker(command, |set| set.pause = None),
            AdminAction::Undrain => self.undrain(command)?,
        }
        self.0.retain(|entry| !entry.set.is_empty());
        Ok(())
    }

    /// Removes a pause that is over.
    pub(crate) fn end_pause(&mut self, worker: &str) {
        let all = self.0.iter_mut().filter(|it| it.worker == worker);
        all.for_each(|entry| entry.set.pause = None);
        self.0.retain(|entry| !entry.set.is_empty());
    }

    fn undrain(&mut self, command: &AdminCommand) -> Result<(), AdminError> {
        let Some(service) = &command.service else {
            self.of_worker(command, |set| set.state = None);
            return Ok(());
        };
        let general = self.get(&command.worker, None);
        if let Some(hold) = general.and_then(|set| set.state.as_ref()) {
            return Err(AdminError::SetForAllServices {
                worker: command.worker.clone(),
                service: service.clone(),
                state: hold.value,
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
        let same = |it: &Entry| it.worker == command.worker && it.service == command.service;
        let index = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Entry {
                worker: command.worker.clone(),
                service: command.service.clone(),
                set: AdminOverride::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[index].set
    }

    fn of_worker(&mut self, command: &AdminCommand, change: impl Fn(&mut AdminOverride)) {
        let all = self.0.iter_mut().filter(|it| it.worker == command.worker);
        all.for_each(|entry| change(&mut entry.set));
    }
}
