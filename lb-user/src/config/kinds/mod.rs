//! The kinds of values: how each is parsed, which bounds it has, and how the file shows it.

mod lists;

use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lb_core::{MANAGER, MaxShare, Mode, NO_BACKEND, Policy, Pressure, Protocol, Threshold};

use super::document::RawValue;
use super::error::{BadValue, ProblemKind};
use super::validator::Validator;
use super::values::{self, Attach, PortRange, format_duration};
use super::words::nearest;
use crate::heartbeat::{Authentication, check_name};

pub(super) use lists::{HostNames, Interfaces, NatSources, Networks, SourceNames};

/// `sun_path` of `struct sockaddr_un`, less its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A value as written, with the validator that records its problems.
pub(super) struct Input<'v, 'a> {
    pub given: RawValue<'a>,
    pub path: &'v str,
    pub validator: &'v mut Validator<'a>,
}

impl Input<'_, '_> {
    /// Returns the value, or reports what is wrong with it.
    fn check<T>(&mut self, value: Result<T, BadValue>) -> Option<T> {
        self.validator.check(self.path, value)
    }

    pub fn reject(
        &mut self,
        kind: ProblemKind,
        what: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.validator
            .reject(self.path, kind, what, expected, remedy);
    }
}

pub(super) trait Kind {
    type Value;

    /// Parses the value, or reports its problems.
    fn read(&self, input: &mut Input<'_, '_>) -> Option<Self::Value>;

    /// Returns the value as TOML.
    fn to_toml(&self, value: &Self::Value) -> String;

    /// Returns the bounds as a sentence of the example file.
    fn bounds(&self) -> Option<String> {
        None
    }
}

/// Returns a text as a string of TOML, whose escapes differ from those of Rust.
fn quoted(text: impl AsRef<str>) -> String {
    let mut quoted = String::from('"');
    for character in text.as_ref().chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => {
                quoted += &format!("\\u{:04X}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

pub(super) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|it| quoted(it.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// Implements [`Kind`] for kinds whose parser returns a value or one problem.
macro_rules! simple_kind {
    ($($kind:ty: $value:ty, |$this:ident, $given:ident| $parse:expr, |$shown:ident| $show:expr
        $(, |$bounded:ident| $bounds:expr)?;)+) => {$(
        impl Kind for $kind {
            type Value = $value;

            fn read(&self, input: &mut Input<'_, '_>) -> Option<$value> {
                let parse = |$this: &Self, $given: RawValue<'_>| -> Result<$value, BadValue> { $parse };
                input.check(parse(self, input.given))
            }

            fn to_toml(&self, $shown: &$value) -> String {
                $show
            }

            $(fn bounds(&self) -> Option<String> {
                let $bounded = self;
                Some($bounds)
            })?
        }
    )+};
}

/// `true` or `false`.
pub(super) struct Flag;
/// An address at which the manager listens.
pub(super) struct ListenAddress;
/// An address at which a manager listens for its peers.
pub(super) struct PeerAddress;
/// An address of one machine on a network.
pub(super) struct HostAddress;
/// A name of a service, a worker or a manager.
pub(super) struct Name;
/// A worker's name: not one of those that mean the fallback.
pub(super) struct WorkerName;
/// An absolute path; the text is what an error expects.
pub(super) struct AbsolutePath(pub &'static str);
/// An absolute path of a file; the text is what an error expects.
pub(super) struct FilePath(pub &'static str);
pub(super) struct SocketPath;
pub(super) struct Ports;
pub(super) struct MemoryThreshold;
pub(super) struct ShareLimit;
/// A percentage within bounds.
pub(super) struct Percent(pub RangeInclusive<u32>);
/// The memory pressure from which a worker gets no connection.
pub(super) struct PressureLimit;

const PRESSURE_LIMITS: RangeInclusive<u32> = 1..=100;

simple_kind! {
    Flag: bool, |_this, given| given.boolean(), |value| value.to_string();
    ListenAddress: SocketAddr, |_this, given| values::address(&given.text()?), |value| quoted(value.to_string());
    PeerAddress: SocketAddr, |_this, given| values::peer_address(&given.text()?), |value| quoted(value.to_string());
    HostAddress: SocketAddr, |_this, given| values::host_address(&given.text()?), |value| quoted(value.to_string());
    Name: String, |_this, given| name(given), |value| quoted(value);
    WorkerName: String, |_this, given| worker_name(given), |value| quoted(value);
    AbsolutePath: PathBuf, |this, given| absolute(given.path()?, this.0), |value| quoted(value.to_string_lossy());
    FilePath: PathBuf, |this, given| file(given.path()?, this.0), |value| quoted(value.to_string_lossy());
    SocketPath: PathBuf, |_this, given| socket(given.path()?), |value| quoted(value.to_string_lossy());
    Ports: PortRange, |_this, given| values::port_range(&given.text()?), |value| quoted(value.to_string());
    MemoryThreshold: Threshold, |_this, given| values::threshold(&given.scalar()?), |value| quoted(format_threshold(*value));
    ShareLimit: MaxShare, |_this, given| values::max_share(&given.scalar()?), |value| quoted(value.to_string());
    Percent: u32, |this, given| values::percent(&given.scalar()?, &this.0), |value| format!("\"{value}%\""),
        |this| percent_bounds(&this.0);
    PressureLimit: Pressure, |_this, given| values::percent(&given.scalar()?, &PRESSURE_LIMITS).map(Pressure::percent),
        |value| format!("\"{}%\"", value.0 / 100), |_this| percent_bounds(&PRESSURE_LIMITS);
}

fn percent_bounds(range: &RangeInclusive<u32>) -> String {
    format!("From \"{}%\" to \"{}%\".", range.start(), range.end())
}

fn name(given: RawValue<'_>) -> Result<String, BadValue> {
    let name = given.text()?;
    match check_name(&name) {
        Ok(()) => Ok(name.into_owned()),
        Err(problem) => Err(BadValue {
            kind: ProblemKind::BadName,
            what: problem.to_string(),
            expected: "1 to 64 ASCII letters, digits and . _ -, not beginning with a dot".into(),
            remedy: "choose another name".to_owned(),
        }),
    }
}

fn worker_name(given: RawValue<'_>) -> Result<String, BadValue> {
    let name = name(given)?;
    match [MANAGER, NO_BACKEND].contains(&name.as_str()) {
        false => Ok(name),
        true => Err(BadValue {
            kind: ProblemKind::BadName,
            what: format!("{name:?} is reserved: it means a service's fallback"),
            expected: "another name".into(),
            remedy: "rename the worker, here and in its agent's --name".to_owned(),
        }),
    }
}

/// Refuses a relative path: it would depend on the manager's working directory.
fn absolute(path: PathBuf, expected: &'static str) -> Result<PathBuf, BadValue> {
    match path.is_absolute() {
        true => Ok(path),
        false => Err(BadValue {
            kind: ProblemKind::BadPath,
            what: format!("{:?} is not an absolute path", path.to_string_lossy()),
            expected: expected.into(),
            remedy: "begin the path with /".to_owned(),
        }),
    }
}

fn file(path: PathBuf, expected: &'static str) -> Result<PathBuf, BadValue> {
    match path.file_name() {
        Some(_) => absolute(path, expected),
        None => Err(BadValue {
            kind: ProblemKind::BadPath,
            what: format!("{:?} does not name a file", path.to_string_lossy()),
            expected: expected.into(),
            remedy: "name a file, or leave the setting out".to_owned(),
        }),
    }
}

fn socket(path: PathBuf) -> Result<PathBuf, BadValue> {
    let bytes = path.as_os_str().len();
    match (1..=MAX_SOCKET_PATH).contains(&bytes) {
        true => absolute(path, "a socket, such as /run/memlb/manager.sock"),
        false => Err(BadValue {
            kind: ProblemKind::BadPath,
            what: format!("a path of {bytes} bytes cannot name a socket"),
            expected: format!("1 to {MAX_SOCKET_PATH} bytes").into(),
            remedy: "choose a shorter path, such as /run/memlb/manager.sock".to_owned(),
        }),
    }
}

/// Returns a threshold in the form that [`values::threshold`] parses, without rounding.
fn format_threshold(threshold: Threshold) -> String {
    let Threshold::Bytes(bytes) = threshold else {
        return threshold.to_string();
    };
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let exact = |(shift, _): &(u32, _)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(exact) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// A value of a kind, or `None`, for which the file has this text.
pub(super) struct Optional<K>(pub K, pub &'static str);

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Self::Value> {
        match input.given.text() {
            Ok(text) if text == self.1 => Some(None),
            _ => self.0.read(input).map(Some),
        }
    }

    fn to_toml(&self, value: &Self::Value) -> String {
        let Self(kind, none) = self;
        value
            .as_ref()
            .map_or_else(|| quoted(none), |it| kind.to_toml(it))
    }
}

/// A whole number within bounds.
pub(super) struct Integer<T>(pub RangeInclusive<T>);

impl<T: Copy + PartialOrd + Display + TryFrom<i64>> Kind for Integer<T> {
    type Value = T;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<T> {
        let (least, most) = (self.0.start(), self.0.end());
        let out_of_range = |what: String| BadValue {
            kind: ProblemKind::OutOfRange,
            what,
            expected: format!("from {least} to {most}").into(),
            remedy: "write a number in this range".to_owned(),
        };
        let value = match input.given.integer() {
            Ok(number) => T::try_from(number)
                .ok()
                .filter(|number| self.0.contains(number))
                .ok_or_else(|| out_of_range(format!("{number} is out of range"))),
            Err(bad) if bad.kind == ProblemKind::OutOfRange => Err(out_of_range(bad.what)),
            Err(bad) => Err(bad),
        };
        input.check(value)
    }

    fn to_toml(&self, value: &T) -> String {
        value.to_string()
    }

    fn bounds(&self) -> Option<String> {
        Some(format!("From {} to {}.", self.0.start(), self.0.end()))
    }
}

/// A duration up to a maximum; zero only if `may_be_zero`.
pub(super) struct Time {
    max: Duration,
    may_be_zero: bool,
}

impl Time {
    pub const fn above_zero(max: Duration) -> Self {
        Self {
            max,
            may_be_zero: false,
        }
    }

    pub const fn or_zero(max: Duration) -> Self {
        Self {
            max,
            may_be_zero: true,
        }
    }
}

impl Kind for Time {
    type Value = Duration;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Duration> {
        let text = input.check(input.given.scalar())?;
        let time = input.check(values::duration(&text))?;
        let max = format_duration(self.max);
        let (kind, what, expected) = match time {
            Duration::ZERO if !self.may_be_zero => (
                ProblemKind::ZeroInterval,
                "the time is zero".to_owned(),
                format!("more than 0, at most {max}"),
            ),
            time if time > self.max => (
                ProblemKind::OutOfRange,
                format!("{} is too long", format_duration(time)),
                format!("at most {max}"),
            ),
            time => return Some(time),
        };
        input.reject(kind, what, expected, "write a duration in this range");
        None
    }

    fn to_toml(&self, value: &Duration) -> String {
        quoted(format_duration(*value))
    }

    fn bounds(&self) -> Option<String> {
        let least = match self.may_be_zero {
            true => "From \"0s\"",
            false => "Above \"0s\"",
        };
        let max = format_duration(self.max);
        Some(format!("{least}, up to \"{max}\"."))
    }
}

/// A type whose values have names.
pub(super) trait Named: Copy + PartialEq + Debug + 'static {
    const ALL: &'static [Self];
    /// Names of values that no version supports yet.
    const PLANNED: &'static [&'static str] = &[];
    fn name(self) -> &'static str;
}

macro_rules! named {
    ($($type:ty $(, $planned:literal)*;)+) => {$(
        impl Named for $type {
            const ALL: &'static [Self] = &<$type>::ALL;
            const PLANNED: &'static [&'static str] = &[$($planned),*];

            fn name(self) -> &'static str {
                <$type>::name(self)
            }
        }
    )+};
}

named! {
    Attach;
    Authentication;
    Protocol, "sctp";
    Policy;
    Mode;
}

/// A value of a type whose values have names.
pub(super) struct Choice<T>(PhantomData<T>);

impl<T> Choice<T> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Named> Kind for Choice<T> {
    type Value = T;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<T> {
        let text = input.check(input.given.text())?;
        if let Some(value) = T::ALL.iter().find(|value| value.name() == text) {
            return Some(*value);
        }
        let known: Vec<&str> = T::ALL.iter().map(|value| value.name()).collect();
        let is_planned = T::PLANNED.contains(&text.as_ref());
        let (kind, what) = match is_planned {
            true => (
                ProblemKind::NotSupportedYet,
                format!("{text:?} is not supported by this version yet"),
            ),
            false => (ProblemKind::UnknownChoice, format!("{text:?} is not known")),
        };
        let remedy = match nearest(&text, &known).filter(|_| !is_planned) {
            Some(word) => format!("did you mean {word:?}?"),
            None => "write one that is known; `memlb check --example` explains them".to_owned(),
        };
        let known: Vec<String> = known.iter().map(quoted).collect();
        input.reject(kind, what, format!("one of {}", known.join(", ")), remedy);
        None
    }

    fn to_toml(&self, value: &T) -> String {
        quoted(value.name())
    }
}
