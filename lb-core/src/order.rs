//! The operator's standing orders: which workers get fewer new connections, or none, and by whose
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
use super::pause::{LEAST_PAUSE, MOST_PAUSE};

/// The largest weight, in percent.
pub const MOST_WEIGHT_PERCENT: u32 = 1000;

/// The longest reason for an order, in bytes.
pub const MOST_REASON_BYTES: usize = 1000;

/// What is ordered of a worker, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub worker: String,
    /// Nothing means all of the worker's services, also those that it gets later.
    #[serde(default)]
    pub service: Option<String>,
    #[serde(flatten)]
    pub action: Action,
    pub by: String,
    /// Milliseconds since 1970 by the operator's clock; shown, never reckoned with.
    pub at_ms: u64,
    #[serde(default)]
    pub reason: Option<String>,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, by, .. } = self;
        match self.action {
            Action::Hold { hold } => write!(f, "{worker} is {} by {by}", hold.participle())?,
            Action::Undrain => write!(f, "{worker} takes new connections again by order of {by}")?,
            Action::Weight { percent } => write!(f, "{worker} weighs {percent}% by order of {by}")?,
            Action::Pause { for_ms } => {
                write!(f, "{worker} is paused for {} by {by}", span(for_ms))?;
            }
            Action::Resume => write!(f, "{worker} is no longer paused, by order of {by}")?,
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
pub enum Action {
    Hold {
        hold: Hold,
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

impl Action {
    /// Whether it only ends what was ordered before.
    pub fn takes_back(self) -> bool {
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
pub enum Hold {
    /// It keeps the connections it has.
    Drain,
    /// The same, and its silence or illness alarms nobody.
    Maintenance,
    /// Its connections are cut as well.
    Cut,
}

impl Hold {
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
            Self::Cut => "cut",
        }
    }

    /// As in "worker1 is …".
    pub fn participle(self) -> &'static str {
        match self {
            Self::Drain => "drained",
            Self::Maintenance => "in maintenance",
            Self::Cut => "drained and its connections cut",
        }
    }
}

/// A value with who set it, when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Marked<T> {
    pub value: T,
    pub by: String,
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl<T> Marked<T> {
    fn of(value: T, order: &Order) -> Self {
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
pub struct Overlay {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Marked<Hold>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<Marked<u32>>,
    /// In milliseconds from when it was ordered.
    #[serde(default, rename = "pause_ms", skip_serializing_if = "Option::is_none")]
    pub pause: Option<Marked<u64>>,
}

impl Overlay {
    /// Returns the hold in force; a weight of nothing is one.
    pub fn held(&self) -> Option<Hold> {
        let weightless = self.weight_percent() == 0;
        let hold = self.hold.as_ref().map(|hold| hold.value);
        hold.or(weightless.then_some(Hold::Drain))
    }

    /// Returns the state in which a worker of this health is treated.
    pub fn treat(&self, health: Health) -> Health {
        match (self.held(), &self.pause) {
            (Some(Hold::Cut), _) | (_, None) => health.under(self.held()),
            (_, Some(_)) => Health::Paused,
        }
    }

    pub fn weight_percent(&self) -> u32 {
        self.weight_percent.as_ref().map_or(100, |it| it.value)
    }

    fn is_empty(&self) -> bool {
        self.hold.is_none() && self.weight_percent.is_none() && self.pause.is_none()
    }
}

impl Health {
    /// Returns the state in which a worker of this health is treated under a hold.
    pub fn under(self, hold: Option<Hold>) -> Self {
        match (self, hold) {
            (own, None) => own,
            (_, Some(Hold::Cut)) => Self::Cut,
            (worse @ (Self::Down | Self::Unhealthy), Some(_)) => worse,
            (_, Some(Hold::Maintenance)) => Self::Maintenance,
            (_, Some(Hold::Drain)) => Self::Draining,
        }
    }
}

/// All standing orders. The JSON form is what survives the manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Orders(Vec<Standing>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    worker: String,
    /// Nothing means all.
    service: Option<String>,
    #[serde(flatten)]
    overlay: Overlay,
}

impl Standing {
    fn orders(&self) -> impl Iterator<Item = Order> {
        let order = |action, by: &str, at_ms, reason: &Option<String>| Order {
            worker: self.worker.clone(),
            service: self.service.clone(),
            action,
            by: by.to_owned(),
            at_ms,
            reason: reason.clone(),
        };
        let hold = self.overlay.hold.as_ref().map(|mark| {
            let action = Action::Hold { hold: mark.value };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let weight = self.overlay.weight_percent.as_ref().map(|mark| {
            let percent = mark.value;
            let action = Action::Weight { percent };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        let pause = self.overlay.pause.as_ref().map(|mark| {
            let action = Action::Pause { for_ms: mark.value };
            order(action, &mark.by, mark.at_ms, &mark.reason)
        });
        hold.into_iter().chain(weight).chain(pause)
    }
}

impl Orders {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what is in force for `worker` in `service`: of holds the one that stops more, of
    /// weights the one given for the service itself.
    pub fn overlay(&self, worker: &str, service: &str) -> Overlay {
        let general = self.get(worker, None);
        let special = self.get(worker, Some(service));
        let hold = |overlay: Option<&Overlay>| overlay.and_then(|it| it.hold.clone());
        let weight = |overlay: Option<&Overlay>| overlay.and_then(|it| it.weight_percent.clone());
        let holds = [hold(general), hold(special)].into_iter().flatten();
        Overlay {
            hold: holds.max_by_key(|hold| hold.value),
            weight_percent: weight(special).or_else(|| weight(general)),
            pause: general.and_then(|overlay| overlay.pause.clone()),
        }
    }

    /// Returns every order that stands, as it was given.
    pub fn standing(&self) -> Vec<Order> {
        self.0.iter().flat_map(Standing::orders).collect()
    }

    /// Returns the workers that are paused, with for how many milliseconds, by whom and since when.
    pub fn pauses(&self) -> impl Iterator<Item = (&str, &Marked<u64>)> {
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
    pub(super) fn are_taken_back_by(&self, order: &Order) -> bool {
        let wanted = |(worker, service): (&str, Option<&str>)| {
            worker == order.worker
                && (order.service.is_none() || order.service.as_deref() == service)
        };
        order.action.takes_back() && self.targets().any(wanted)
    }

    /// Returns those of earlier standing orders that stand no more, in what they say.
    pub(super) fn missing_of(&self, earlier: Vec<Order>) -> impl Iterator<Item = Order> {
        let now: BTreeSet<String> = self.standing().iter().map(Order::to_string).collect();
        let earlier = earlier.into_iter();
        earlier.filter(move |order| !now.contains(&order.to_string()))
    }

    /// Lays an order down.
    ///
    /// # Errors
    ///
    /// Says that the worker is held for all services, and cannot be undrained for one.
    pub(super) fn take(&mut self, order: &Order) -> Result<(), OrderError> {
        match order.action {
            Action::Hold { hold } => self.entry(order).hold = Some(Marked::of(hold, order)),
            Action::Weight { percent: 100 } if order.service.is_none() => {
                self.of_worker(order, |overlay| overlay.weight_percent = None);
            }
            Action::Weight { percent } => {
                if order.service.is_none() {
                    self.of_worker(order, |overlay| overlay.weight_percent = None);
                }
                self.entry(order).weight_percent = Some(Marked::of(percent, order));
            }
            Action::Pause { for_ms } => self.entry(order).pause = Some(Marked::of(for_ms, order)),
            Action::Resume => self.of_worker(order, |overlay| overlay.pause = None),
            Action::Undrain => self.undrain(order)?,
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

    fn undrain(&mut self, order: &Order) -> Result<(), OrderError> {
        let Some(service) = &order.service else {
            self.of_worker(order, |overlay| overlay.hold = None);
            return Ok(());
        };
        let general = self.get(&order.worker, None);
        if let Some(hold) = general.and_then(|overlay| overlay.hold.as_ref()) {
            return Err(OrderError::HeldForAll {
                worker: order.worker.clone(),
                service: service.clone(),
                hold: hold.value,
            });
        }
        self.entry(order).hold = None;
        Ok(())
    }

    fn get(&self, worker: &str, service: Option<&str>) -> Option<&Overlay> {
        let mut standing = self.0.iter();
        standing
            .find(|it| it.worker == worker && it.service.as_deref() == service)
            .map(|it| &it.overlay)
    }

    fn entry(&mut self, order: &Order) -> &mut Overlay {
        let same = |it: &Standing| it.worker == order.worker && it.service == order.service;
        let place = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Standing {
                worker: order.worker.clone(),
                service: order.service.clone(),
                overlay: Overlay::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[place].overlay
    }

    fn of_worker(&mut self, order: &Order, change: impl Fn(&mut Overlay)) {
        let all = self.0.iter_mut().filter(|it| it.worker == order.worker);
        all.for_each(|standing| change(&mut standing.overlay));
    }
}

/// Why an order cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
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
        hold: Hold,
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

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownWorker { worker, known } => f.write_str(&no_such("worker", worker, known)),
            Self::UnknownService { service, known } => {
                f.write_str(&no_such("service", service, known))
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
                hold.participle()
            ),
            Self::WeightTooLarge { percent } => write!(
                f,
                "a weight of {percent} percent is too large: expected 0 to {MOST_WEIGHT_PERCENT}"
            ),
            Self::PauseOutOfRange { for_ms } => write!(
                f,
                "a pause of {} is not possible: expected {} to {}",
                span(*for_ms),
                humantime::format_duration(LEAST_PAUSE),
                humantime::format_duration(MOST_PAUSE)
            ),
            Self::PauseOfOneService => f.write_str(
                "a worker is paused in all its services, since it is silent in all of them: leave out \
                 --service",
            ),
            Self::ReasonTooLong { bytes } => write!(
                f,
                "the reason has {bytes} bytes: at most {MOST_REASON_BYTES} are kept"
            ),
            Self::ReasonUnprintable { character } => write!(
                f,
                "the reason contains {character:?}: expected one line of text, without control \
                 characters"
            ),
        }
    }
}

impl std::error::Error for OrderError {}

fn span(milliseconds: u64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(milliseconds))
}

/// Checks why an order is given: one line, which stands in tables and log lines as it is.
///
/// # Errors
///
/// Returns the first thing that is wrong with it.
pub fn check_reason(reason: &str) -> Result<(), OrderError> {
    if reason.len() > MOST_REASON_BYTES {
        let bytes = reason.len();
        return Err(OrderError::ReasonTooLong { bytes });
    }
    match reason.chars().find(|character| character.is_control()) {
        Some(character) => Err(OrderError::ReasonUnprintable { character }),
        None => Ok(()),
    }
}

/// Says that there is nothing of that `kind` and `name`, and what was probably meant.
pub fn no_such(kind: &str, name: &str, known: &[impl AsRef<str>]) -> String {
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
        let said = no_such("worker", "nosuch", &["a", "b"]);
        assert_eq!(said, "there is no worker \"nosuch\", only a, b");
        let many: Vec<String> = (0..300).map(|it| format!("worker{it}")).collect();
        assert_eq!(
            no_such("worker", "other7", &many),
            "there is no worker \"other7\"; of 300, the most similar are worker7, worker0, \
             worker1, worker2, worker3"
        );
        assert!(no_such("worker", "worker7x", &many).ends_with("did you mean worker7?"));
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
                OrderError::ReasonUnprintable {
                    character: '\u{1b}',
                },
            ),
            ("a\nb", OrderError::ReasonUnprintable { character: '\n' }),
            (&"r".repeat(1001), OrderError::ReasonTooLong { bytes: 1001 }),
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
