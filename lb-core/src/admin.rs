//! The operator's standing overrides: which workers get fewer new connections, or none, and by whose
//! word.
//!
//! They lie over what is known of a worker's health and only ever take traffic away from it; a
//! worker that is down stays down, whatever is ordered.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health::Health;
use super::pause::{MAX_PAUSE, MIN_PAUSE};

/// The largest weight, in percent.
pub const MAX_WEIGHT_PERCENT: u32 = 1000;

/// The longest reason for an order, in bytes.
pub const MAX_REASON_BYTES: usize = 1000;

/// What is ordered of a worker, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminCommand {
    pub worker: String,
    /// Nothing means all of the worker's services, also those that it gets later.
    #[serde(default)]
    pub service: Option<String>,
    #[serde(flatten)]
    pub action: AdminAction,
    pub by: String,
    /// Milliseconds since 1970 by the operator's clock; shown, never reckoned with.
    pub at_ms: u64,
    #[serde(default)]
    pub reason: Option<String>,
}

impl fmt::Display for AdminCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, by, .. } = self;
        match self.action {
            AdminAction::SetState { state } => {
                write!(f, "{worker} is {} by {by}", state.description())?;
            }
            AdminAction::Undrain => {
                write!(f, "{worker} takes new connections again by order of {by}")?;
            }
            AdminAction::Weight { percent } => {
                write!(f, "{worker} weighs {percent}% by order of {by}")?;
            }
            AdminAction::Pause { for_ms } => {
                write!(f, "{worker} is paused for {} by {by}", span(for_ms))?;
            }
            AdminAction::Resume => write!(f, "{worker} is no longer paused, by order of {by}")?,
        }
        if let Some(service) = &self.service {
            write!(f, ", for {service}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum AdminAction {
    #[serde(rename = "hold")]
    SetState {
        #[serde(rename = "hold")]
        state: AdminState,
    },
    /// Takes every hold back; a weight stays.
    Undrain,
    Weight {
        percent: u32,
    },
    /// The worker will be silent for so long, and is to keep its connections.
    Pause {
        for_ms: u64,
    },
    /// Ends a pause.
    Resume,
}

impl AdminAction {
    /// Whether it only ends what was ordered before.
    pub fn is_removal(self) -> bool {
        matches!(
            self,
            Self::Undrain | Self::Resume | Self::Weight { percent: 100 }
        )
    }
}

/// Why a worker gets no new connections although it may be up; in the order of how much they stop.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    /// It keeps the connections it has.
    Drain,
    /// The same, and its silence or illness alarms nobody.
    Maintenance,
    /// Its connections are cut as well.
    Cut,
}

impl AdminState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
            Self::Cut => "cut",
        }
    }

    /// As in "worker1 is …".
    pub fn description(self) -> &'static str {
        match self {
            Self::Drain => "drained",
            Self::Maintenance => "in maintenance",
            Self::Cut => "drained and its connections cut",
        }
    }
}

/// A value with who set it, when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audited<T> {
    pub value: T,
    pub by: String,
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl<T> Audited<T> {
    fn of(value: T, order: &AdminCommand) -> Self {
        Self {
            value,
            by: order.by.clone(),
            at_ms: order.at_ms,
            reason: order.reason.clone(),
        }
    }
}

/// What is in force for one worker in one service, or in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminOverride {
    #[serde(default, rename = "hold", skip_serializing_if = "Option::is_none")]
    pub state: Option<Audited<AdminState>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<Audited<u32>>,
    /// In milliseconds from when it was ordered.
    #[serde(default, rename = "pause_ms", skip_serializing_if = "Option::is_none")]
    pub pause: Option<Audited<u64>>,
}

impl AdminOverride {
    /// Returns the hold in force; a weight of nothing is one.
    pub fn effective_state(&self) -> Option<AdminState> {
        let weightless = self.weight_percent() == 0;
        let hold = self.state.as_ref().map(|hold| hold.value);
        hold.or(weightless.then_some(AdminState::Drain))
    }

    /// Returns the state in which a worker of this health is treated.
    pub fn effective_health(&self, health: Health) -> Health {
        match (self.effective_state(), &self.pause) {
            (Some(AdminState::Cut), _) | (_, None) => {
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
    /// Returns the state in which a worker of this health is treated under a hold.
    pub fn under_admin_state(self, hold: Option<AdminState>) -> Self {
        match (self, hold) {
            (own, None) => own,
            (_, Some(AdminState::Cut)) => Self::Cut,
            (worse @ (Self::Down | Self::Unhealthy), Some(_)) => worse,
            (_, Some(AdminState::Maintenance)) => Self::Maintenance,
            (_, Some(AdminState::Drain)) => Self::Draining,
        }
    }
}

/// All standing orders. The JSON form is what survives the manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminOverrides(Vec<OverrideEntry>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OverrideEntry {
    worker: String,
    /// Nothing means all.
    service: Option<String>,
    #[serde(flatten)]
    overlay: AdminOverride,
}

impl OverrideEntry {
    fn orders(&self) -> impl Iterator<Item = AdminCommand> {
        let order = |action, by: &str, at_ms, reason: &Option<String>| AdminCommand {
            worker: self.worker.clone(),
            service: self.service.clone(),
            action,
            by: by.to_owned(),
            at_ms,
            reason: reason.clone(),
        };
        let hold = self.overlay.state.as_ref().map(|mark| {
            let action = AdminAction::SetState { state: mark.value };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let weight = self.overlay.weight_percent.as_ref().map(|mark| {
            let percent = mark.value;
            let action = AdminAction::Weight { percent };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let pause = self.overlay.pause.as_ref().map(|mark| {
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

    /// Returns what is in force for `worker` in `service`: of holds the one that stops more, of
    /// weights the one given for the service itself.
    pub fn overlay(&self, worker: &str, service: &str) -> AdminOverride {
        let general = self.get(worker, None);
        let special = self.get(worker, Some(service));
        let hold = |overlay: Option<&AdminOverride>| overlay.and_then(|it| it.state.clone());
        let weight =
            |overlay: Option<&AdminOverride>| overlay.and_then(|it| it.weight_percent.clone());
        let holds = [hold(general), hold(special)].into_iter().flatten();
        AdminOverride {
            state: holds.max_by_key(|hold| hold.value),
            weight_percent: weight(special).or_else(|| weight(general)),
            pause: general.and_then(|overlay| overlay.pause.clone()),
        }
    }

    /// Returns every order that stands, as it was given.
    pub fn commands(&self) -> Vec<AdminCommand> {
        self.0.iter().flat_map(OverrideEntry::orders).collect()
    }

    /// Returns the workers that are paused, with for how many milliseconds, by whom and since when.
    pub fn pauses(&self) -> impl Iterator<Item = (&str, &Audited<u64>)> {
        let standing = self.0.iter();
        standing.filter_map(|it| Some((it.worker.as_str(), it.overlay.pause.as_ref()?)))
    }

    /// Returns the names that orders stand for, each with its service.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0
            .iter()
            .map(|it| (it.worker.as_str(), it.service.as_deref()))
    }

    /// Whether an order only ends such as stand, whoever they are about.
    pub(super) fn is_removed_by(&self, order: &AdminCommand) -> bool {
        let wanted = |(worker, service): (&str, Option<&str>)| {
            worker == order.worker
                && (order.service.is_none() || order.service.as_deref() == service)
        };
        order.action.is_removal() && self.targets().any(wanted)
    }

    /// Returns those of earlier standing orders that stand no more, in what they say.
    pub(super) fn missing_from(
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

    /// Lays an order down.
    ///
    /// # Errors
    ///
    /// Says that the worker is held for all services, and cannot be undrained for one.
    pub(super) fn apply(&mut self, order: &AdminCommand) -> Result<(), AdminError> {
        match order.action {
            AdminAction::SetState { state } => {
                self.entry(order).state = Some(Audited::of(state, order));
            }
            AdminAction::Weight { percent: 100 } if order.service.is_none() => {
                self.of_worker(order, |overlay| overlay.weight_percent = None);
            }
            AdminAction::Weight { percent } => {
                if order.service.is_none() {
                    self.of_worker(order, |overlay| overlay.weight_percent = None);
                }
                self.entry(order).weight_percent = Some(Audited::of(percent, order));
            }
            AdminAction::Pause { for_ms } => {
                self.entry(order).pause = Some(Audited::of(for_ms, order));
            }
            AdminAction::Resume => self.of_worker(order, |overlay| overlay.pause = None),
            AdminAction::Undrain => self.undrain(order)?,
        }
        self.0.retain(|standing| !standing.overlay.is_empty());
        Ok(())
    }

    /// Takes the order back whose time is over.
    pub(super) fn end_pause(&mut self, worker: &str) {
        let all = self.0.iter_mut().filter(|it| it.worker == worker);
        all.for_each(|standing| standing.overlay.pause = None);
        self.0.retain(|standing| !standing.overlay.is_empty());
    }

    fn undrain(&mut self, order: &AdminCommand) -> Result<(), AdminError> {
        let Some(service) = &order.service else {
            self.of_worker(order, |overlay| overlay.state = None);
            return Ok(());
        };
        let general = self.get(&order.worker, None);
        if let Some(hold) = general.and_then(|overlay| overlay.state.as_ref()) {
            return Err(AdminError::HeldForAll {
                worker: order.worker.clone(),
                service: service.clone(),
                hold: hold.value,
            });
        }
        self.entry(order).state = None;
        Ok(())
    }

    fn get(&self, worker: &str, service: Option<&str>) -> Option<&AdminOverride> {
        let mut standing = self.0.iter();
        standing
            .find(|it| it.worker == worker && it.service.as_deref() == service)
            .map(|it| &it.overlay)
    }

    fn entry(&mut self, order: &AdminCommand) -> &mut AdminOverride {
        let same = |it: &OverrideEntry| it.worker == order.worker && it.service == order.service;
        let place = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(OverrideEntry {
                worker: order.worker.clone(),
                service: order.service.clone(),
                overlay: AdminOverride::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[place].overlay
    }

    fn of_worker(&mut self, order: &AdminCommand, change: impl Fn(&mut AdminOverride)) {
        let all = self.0.iter_mut().filter(|it| it.worker == order.worker);
        all.for_each(|standing| change(&mut standing.overlay));
    }
}

/// Why an order cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminError {
    UnknownWorker {
        worker: String,
        known: Vec<String>,
    },
    UnknownService {
        service: String,
        known: Vec<String>,
    },
    NotInService {
        worker: String,
        service: String,
        services: Vec<String>,
    },
    HeldForAll {
        worker: String,
        service: String,
        hold: AdminState,
    },
    WeightTooLarge {
        percent: u32,
    },
    PauseOutOfRange {
        for_ms: u64,
    },
    /// A machine is silent in all its services.
    PauseOfOneService,
    ReasonTooLong {
        bytes: usize,
    },
    ReasonUnprintable {
        character: char,
    },
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownWorker { worker, known } => f.write_str(&unknown_name("worker", worker, known)),
            Self::UnknownService { service, known } => {
                f.write_str(&unknown_name("service", service, known))
            }
            Self::NotInService {
                worker,
                service,
                services,
            } => write!(
                f,
                "{worker} does not serve {service}: it serves {}",
                services.join(", ")
            ),
            Self::HeldForAll {
                worker,
                service,
                hold,
            } => write!(
                f,
                "{worker} is {} for all its services: undrain it without --service, and drain it \
                 for the services other than {service} if need be",
                hold.description()
            ),
            Self::WeightTooLarge { percent } => write!(
                f,
                "a weight of {percent} percent is too large: expected 0 to {MAX_WEIGHT_PERCENT}"
            ),
            Self::PauseOutOfRange { for_ms } => write!(
                f,
                "a pause of {} is not possible: expected {} to {}",
                span(*for_ms),
                humantime::format_duration(MIN_PAUSE),
                humantime::format_duration(MAX_PAUSE)
            ),
            Self::PauseOfOneService => f.write_str(
                "a worker is paused in all its services, since it is silent in all of them: leave out \
                 --service",
            ),
            Self::ReasonTooLong { bytes } => write!(
                f,
                "the reason has {bytes} bytes: at most {MAX_REASON_BYTES} are kept"
            ),
            Self::ReasonUnprintable { character } => write!(
                f,
                "the reason contains {character:?}: expected one line of text, without control \
                 characters"
            ),
        }
    }
}

impl std::error::Error for AdminError {}

fn span(milliseconds: u64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(milliseconds))
}

/// Checks why an order is given: one line, which stands in tables and log lines as it is.
///
/// # Errors
///
/// Returns the first thing that is wrong with it.
pub fn check_reason(reason: &str) -> Result<(), AdminError> {
    if reason.len() > MAX_REASON_BYTES {
        let bytes = reason.len();
        return Err(AdminError::ReasonTooLong { bytes });
    }
    match reason.chars().find(|character| character.is_control()) {
        Some(character) => Err(AdminError::ReasonUnprintable { character }),
        None => Ok(()),
    }
}

/// Says that there is nothing of that `kind` and `name`, and what was probably meant.
pub fn unknown_name(kind: &str, name: &str, known: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let distance = |candidate: &&str| strsim::damerau_levenshtein(name, candidate);
    let mut known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    if let Some(nearest) = known.iter().min_by_key(|candidate| distance(candidate))
        && distance(nearest) <= 2
    {
        return format!("there is no {kind} {name:?}; did you mean {nearest}?");
    }
    let count = known.len();
    if count <= SHOWN {
        return format!("there is no {kind} {name:?}, only {}", known.join(", "));
    }
    known.sort_by_cached_key(distance);
    format!(
        "there is no {kind} {name:?}; of {count}, the most similar are {}",
        known[..SHOWN].join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_only_the_nearest_are_told() {
        let said = unknown_name("worker", "nosuch", &["a", "b"]);
        assert_eq!(said, "there is no worker \"nosuch\", only a, b");
        let many: Vec<String> = (0..300).map(|it| format!("worker{it}")).collect();
        assert_eq!(
            unknown_name("worker", "other7", &many),
            "there is no worker \"other7\"; of 300, the most similar are worker7, worker0, \
             worker1, worker2, worker3"
        );
        assert!(unknown_name("worker", "worker7x", &many).ends_with("did you mean worker7?"));
    }

    #[test]
    fn a_reason_is_one_line_that_does_no_harm() {
        assert_eq!(
            check_reason("kernel update, ticket 42: \u{fc}bermorgen"),
            Ok(())
        );
        for (reason, problem) in [
            (
                "a\u{1b}[31mred",
                AdminError::ReasonUnprintable {
                    character: '\u{1b}',
                },
            ),
            ("a\nb", AdminError::ReasonUnprintable { character: '\n' }),
            (&"r".repeat(1001), AdminError::ReasonTooLong { bytes: 1001 }),
        ] {
            let said = problem.to_string();
            assert_eq!(check_reason(reason), Err(problem));
            assert!(
                said.len() < 120 && !said.contains(char::is_control),
                "{said}"
            );
        }
    }
}
