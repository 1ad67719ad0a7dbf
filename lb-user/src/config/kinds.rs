//! The kinds of values: how each is parsed, which bounds it has, and how the file shows it.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use lb_common::maps::MAX_NAT_SOURCES;
use lb_core::{MANAGER, MaxShare, Mode, NO_BACKEND, Policy, Pressure, Protocol, Threshold};

use super::Attach;
use super::document::Given;
use super::error::{BadValue, ProblemKind};
use super::fields::{REWRITE, Validator};
use super::keys::{AutoJoin, Worker};
use super::values::{self, PortRange, show_duration};
use super::words::nearest;
use crate::heartbeat::{Authentication, check_name};

/// `ALTIFNAMSIZ` of linux/if.h less its final NUL; alternative names may be longer than others.
const LONGEST_INTERFACE_NAME: usize = 127;
/// `sun_path` of `struct sockaddr_un`, less its final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

pub(super) trait Kind {
    type Value;

    /// Parses the value at `path`; problems go to the validator.
    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Self::Value>;

    /// Returns the value as TOML.
    fn show(&self, value: &Self::Value) -> String;

    /// Returns the bounds as a sentence of the example file.
    fn bounds(&self) -> Option<String> {
        None
    }
}

fn quoted(text: impl AsRef<str>) -> String {
    format!("{:?}", text.as_ref())
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|it| quoted(it.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// Implements [`Kind`] for a kind that has one value or one problem.
macro_rules! simple_kind {
    ($($kind:ty: $value:ty, |$this:ident, $given:ident| $parse:expr, |$shown:ident| $show:expr;)+) => {$(
        impl Kind for $kind {
            type Value = $value;

            fn read<'a>(
                &self,
                given: Given<'a>,
                path: &str,
                validator: &mut Validator<'a>,
            ) -> Option<$value> {
                let parse = |$this: &Self, $given: Given<'_>| -> Result<$value, BadValue> { $parse };
                validator.check(path, parse(self, given))
            }

            fn show(&self, $shown: &$value) -> String {
                $show
            }
        }
    )+};
}

/// `true` or `false`.
pub(super) struct Flag;
/// The manager's own UDP address.
pub(super) struct ListenAddress;
/// An address, or "" for none.
pub(super) struct OptionalListenAddress;
/// An address of one machine on a network.
pub(super) struct HostAddress;
/// An address, or "reject" for none.
pub(super) struct Fallback;
/// A name of a service or a worker.
pub(super) struct Name;
/// A worker's name: none that stands for a fallback.
pub(super) struct WorkerName;
/// An absolute path, with an example of one.
pub(super) struct AbsolutePath(pub &'static str);
/// An absolute path of a file, with an example of one.
pub(super) struct FilePath(pub &'static str);
/// An absolute path, or "" for none.
pub(super) struct OptionalPath(pub &'static str);
pub(super) struct SocketPath;
pub(super) struct Ports;
pub(super) struct MemoryThreshold;
pub(super) struct ShareLimit;

simple_kind! {
    Flag: bool, |_this, given| given.boolean(), |value| value.to_string();
    ListenAddress: SocketAddr, |_this, given| values::address(&given.text()?), |value| quoted(value.to_string());
    OptionalListenAddress: Option<SocketAddr>,
        |_this, given| match given.text()?.as_ref() {
            "" => Ok(None),
            text => values::address(text).map(Some),
        },
        |value| quoted(value.map_or(String::new(), |it| it.to_string()));
    HostAddress: SocketAddr, |_this, given| values::host_address(&given.text()?), |value| quoted(value.to_string());
    Fallback: Option<SocketAddr>,
        |_this, given| match given.text()?.as_ref() {
            "reject" => Ok(None),
            text => values::address(text).map(Some),
        },
        |value| quoted(value.map_or("reject".to_owned(), |it| it.to_string()));
    Name: String, |_this, given| name(given), |value| quoted(value);
    WorkerName: String, |_this, given| worker_name(given), |value| quoted(value);
    AbsolutePath: PathBuf, |this, given| absolute(given.path()?, this.0), |value| quoted(value.to_string_lossy());
    FilePath: PathBuf, |this, given| file(given.path()?, this.0), |value| quoted(value.to_string_lossy());
    OptionalPath: Option<PathBuf>,
        |this, given| match given.path()? {
            path if path.as_os_str().is_empty() => Ok(None),
            path => absolute(path, this.0).map(Some),
        },
        |value| quoted(value.as_deref().unwrap_or(Path::new("")).to_string_lossy());
    SocketPath: PathBuf, |_this, given| socket(given.path()?), |value| quoted(value.to_string_lossy());
    Ports: PortRange, |_this, given| values::port_range(&given.text()?), |value| quoted(value.to_string());
    MemoryThreshold: Threshold, |_this, given| values::threshold(&given.scalar()?), |value| quoted(show_threshold(*value));
    ShareLimit: MaxShare, |_this, given| values::max_share(&given.scalar()?), |value| quoted(value.to_string());
}

fn name(given: Given<'_>) -> Result<String, BadValue> {
    let name = given.text()?;
    match check_name(&name) {
        Ok(()) => Ok(name.into_owned()),
        Err(problem) => Err(BadValue {
            kind: ProblemKind::BadName,
            what: problem.to_string(),
            expected: "1 to 64 ASCII letters, digits and . _ -, the first of them no dot".into(),
            remedy: "choose another name".to_owned(),
        }),
    }
}

fn worker_name(given: Given<'_>) -> Result<String, BadValue> {
    let name = name(given)?;
    match [MANAGER, NO_BACKEND].contains(&name.as_str()) {
        false => Ok(name),
        true => Err(BadValue {
            kind: ProblemKind::BadName,
            what: format!("{name:?} stands for a service's fallback"),
            expected: "another name".into(),
            remedy: "rename the worker, here and in its agent's --name".to_owned(),
        }),
    }
}

/// Refuses a path that would depend on where the manager is started.
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
    match (1..=LONGEST_SOCKET_PATH).contains(&bytes) {
        true => absolute(path, "a socket, as /run/memlb/manager.sock"),
        false => Err(BadValue {
            kind: ProblemKind::BadPath,
            what: format!("a path of {bytes} bytes cannot name a socket"),
            expected: format!("1 to {LONGEST_SOCKET_PATH} bytes").into(),
            remedy: "choose a shorter path, as /run/memlb/manager.sock".to_owned(),
        }),
    }
}

/// Returns a threshold as [`values::threshold`] parses it, without rounding.
fn show_threshold(threshold: Threshold) -> String {
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

/// A whole number within bounds.
pub(super) struct Integer(pub RangeInclusive<u32>);

impl Kind for Integer {
    type Value = u32;

    fn read<'a>(&self, given: Given<'a>, path: &str, validator: &mut Validator<'a>) -> Option<u32> {
        let number = validator.check(path, given.integer())?;
        let value = u32::try_from(number).ok();
        let value = value.filter(|number| self.0.contains(number));
        let (least, most) = (self.0.start(), self.0.end());
        validator.check(
            path,
            value.ok_or_else(|| BadValue {
                kind: ProblemKind::OutOfRange,
                what: format!("{number} is out of range"),
                expected: format!("from {least} to {most}").into(),
                remedy: "write one that is in this range".to_owned(),
            }),
        )
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }

    fn bounds(&self) -> Option<String> {
        Some(format!("From {} to {}.", self.0.start(), self.0.end()))
    }
}

/// A duration up to a longest one; zero is one only where it is allowed.
pub(super) struct Time {
    longest: Duration,
    may_be_zero: bool,
}

impl Time {
    pub const fn above_zero(longest: Duration) -> Self {
        Self {
            longest,
            may_be_zero: false,
        }
    }

    pub const fn or_zero(longest: Duration) -> Self {
        Self {
            longest,
            may_be_zero: true,
        }
    }
}

impl Kind for Time {
    type Value = Duration;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Duration> {
        let text = validator.check(path, given.scalar())?;
        let time = validator.check(path, values::duration(&text))?;
        let longest = show_duration(self.longest);
        let (kind, what, expected) = match time {
            Duration::ZERO if !self.may_be_zero => (
                ProblemKind::ZeroInterval,
                "the time is zero".to_owned(),
                format!("more than 0, at most {longest}"),
            ),
            time if time > self.longest => (
                ProblemKind::OutOfRange,
                format!("{} is too long", show_duration(time)),
                format!("at most {longest}"),
            ),
            time => return Some(time),
        };
        validator.reject(path, kind, what, expected, "write a duration in this range");
        None
    }

    fn show(&self, value: &Duration) -> String {
        quoted(show_duration(*value))
    }

    fn bounds(&self) -> Option<String> {
        let least = match self.may_be_zero {
            true => "From \"0s\"",
            false => "Above \"0s\"",
        };
        let longest = show_duration(self.longest);
        Some(format!("{least}, up to \"{longest}\"."))
    }
}

/// A percentage within bounds.
pub(super) struct Percent(pub RangeInclusive<u32>);

impl Kind for Percent {
    type Value = u32;

    fn read<'a>(&self, given: Given<'a>, path: &str, validator: &mut Validator<'a>) -> Option<u32> {
        let text = validator.check(path, given.scalar())?;
        validator.check(path, values::percent(&text, self.0.clone()))
    }

    fn show(&self, value: &u32) -> String {
        format!("\"{value}%\"")
    }

    fn bounds(&self) -> Option<String> {
        let (least, most) = (self.0.start(), self.0.end());
        Some(format!("From \"{least}%\" to \"{most}%\"."))
    }
}

/// The memory pressure from which a worker gets no connection.
pub(super) struct PressureLimit;

impl PressureLimit {
    const PERCENT: Percent = Percent(1..=100);
}

impl Kind for PressureLimit {
    type Value = Pressure;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Pressure> {
        let percent = Self::PERCENT.read(given, path, validator)?;
        Some(Pressure::percent(percent))
    }

    fn show(&self, value: &Pressure) -> String {
        format!("\"{}%\"", value.0 / 100)
    }

    fn bounds(&self) -> Option<String> {
        Self::PERCENT.bounds()
    }
}

/// A type whose values have names.
pub(super) trait Named: Copy + PartialEq + Debug + 'static {
    const ALL: &'static [Self];
    /// Names that are known, but not supported yet.
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

/// One of the names of a type's values.
pub(super) struct Choice<T>(PhantomData<T>);

impl<T> Choice<T> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Named> Kind for Choice<T> {
    type Value = T;

    fn read<'a>(&self, given: Given<'a>, path: &str, validator: &mut Validator<'a>) -> Option<T> {
        let text = validator.check(path, given.text())?;
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
        validator.reject(
            path,
            kind,
            what,
            format!("one of {}", known.join(", ")),
            remedy,
        );
        None
    }

    fn show(&self, value: &T) -> String {
        quoted(value.name())
    }
}

/// Reads the items of a list of texts; an item that has a problem is left out.
fn items<T: PartialEq>(
    given: Given<'_>,
    path: &str,
    validator: &mut Validator<'_>,
    parse: impl Fn(&str, &[T]) -> Result<T, BadValue>,
) -> Option<Vec<T>> {
    let given = validator.check(path, given.list())?;
    let mut items = Vec::new();
    for item in given {
        validator.note(path, item.source.origin());
        let Some(text) = validator.check(path, item.text()) else {
            continue;
        };
        items.extend(validator.check(path, parse(text.trim(), &items)));
    }
    Some(items)
}

/// The names of interfaces, at least one.
pub(super) struct Interfaces;

impl Kind for Interfaces {
    type Value = Vec<String>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<String>> {
        items(given, path, validator, |name, before: &[String]| {
            let fits = (1..=LONGEST_INTERFACE_NAME).contains(&name.len());
            let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
            if !fits || !name.chars().all(allowed) {
                return Err(BadValue {
                    kind: ProblemKind::BadInterface,
                    what: format!("{name:?} cannot be an interface's name"),
                    expected: format!(
                        "1 to {LONGEST_INTERFACE_NAME} visible characters without / and :"
                    )
                    .into(),
                    remedy: "`ip -br link` lists the interfaces".to_owned(),
                });
            }
            match before.iter().any(|it| it == name) {
                true => Err(repeated(name, ProblemKind::DuplicateInterface)),
                false => Ok(name.to_owned()),
            }
        })
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value)
    }
}

fn repeated(item: &str, kind: ProblemKind) -> BadValue {
    BadValue {
        kind,
        what: format!("{item:?} is named twice"),
        expected: "each one once".into(),
        remedy: "remove one of them".to_owned(),
    }
}

/// Host names, as between `//` and the port of a URL.
pub(super) struct HostNames;

impl Kind for HostNames {
    type Value = Vec<String>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<String>> {
        let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | '_');
        items(given, path, validator, |name, _: &[String]| {
            match !name.is_empty() && name.chars().all(allowed) {
                true => Ok(name.to_owned()),
                false => Err(BadValue {
                    kind: ProblemKind::BadName,
                    what: format!("{name:?} cannot be a host name"),
                    expected: "names as in \"lb.example.com\", without scheme, port and path"
                        .into(),
                    remedy: "write only the name; addresses need no entry".to_owned(),
                }),
            }
        })
    }

    fn show(&self, value: &Vec<String>) -> String {
        list(value)
    }
}

/// The addresses from which the manager connects to workers.
pub(super) struct NatSources;

impl Kind for NatSources {
    type Value = Vec<IpAddr>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<IpAddr>> {
        let sources = items(given, path, validator, |text, before: &[IpAddr]| match text
            .parse()
            .ok()
            .filter(|ip| is_host(*ip))
        {
            Some(ip) if before.contains(&ip) => Err(repeated(text, ProblemKind::BadNatSource)),
            Some(ip) => Ok(ip),
            None => Err(BadValue {
                kind: ProblemKind::BadNatSource,
                what: format!("{text:?} is no address of one host"),
                expected: "IP addresses of this manager without ports, as in \
                               [\"192.168.56.101\"]"
                    .into(),
                remedy: "write the addresses that `ip address` shows at the interface towards \
                             the workers"
                    .to_owned(),
            }),
        })?;
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let count = sources.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
            if count > MAX_NAT_SOURCES as usize {
                validator.reject(
                    path,
                    ProblemKind::BadNatSource,
                    format!("{count} {family} addresses are named"),
                    format!("at most {MAX_NAT_SOURCES} of each family"),
                    "leave some of them out, or use mode = \"routed\", which needs no ports",
                );
            }
        }
        Some(sources)
    }

    fn show(&self, value: &Vec<IpAddr>) -> String {
        list(value)
    }
}

/// Whether the address can be one of this machine's on a network.
fn is_host(ip: IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(is_special || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// Networks of agents that may join.
pub(super) struct Networks;

impl Kind for Networks {
    type Value = Vec<IpNet>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<IpNet>> {
        items(given, path, validator, |text, _: &[IpNet]| {
            let (what, remedy) = match text.parse::<IpNet>() {
                Ok(network) if network == network.trunc() => return Ok(network),
                Ok(network) => (
                    format!("{text:?} is an address in a network, not a network"),
                    format!("write \"{}\"", network.trunc()),
                ),
                Err(_) => (
                    format!("{text:?} is not a network"),
                    match text.parse::<IpAddr>() {
                        Ok(ip) => format!("write \"{}\" for this one address", IpNet::from(ip)),
                        Err(_) => "write for instance \"192.168.56.0/24\"".to_owned(),
                    },
                ),
            };
            Err(BadValue {
                kind: ProblemKind::BadNetwork,
                what,
                expected: "a network with its length, as \"192.168.56.0/24\" or \"2001:db8::/64\""
                    .into(),
                remedy,
            })
        })
    }

    fn show(&self, value: &Vec<IpNet>) -> String {
        list(value)
    }
}

/// The agents that may join; none where no network is named.
pub(super) struct Joining;

impl Kind for Joining {
    type Value = Option<AutoJoin>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Option<AutoJoin>> {
        if given.table().is_err() {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "it is networks and a port, in braces",
                "auto_join = { networks = [\"192.168.56.0/24\"], port = 8081 }",
                REWRITE,
            );
            return None;
        }
        let auto_join = validator.section::<AutoJoin>(path, Some(given));
        Some((!auto_join.networks.is_empty()).then_some(auto_join))
    }

    fn show(&self, value: &Option<AutoJoin>) -> String {
        let AutoJoin { networks, port } = value.clone().unwrap_or_default();
        format!("{{ networks = {}, port = {port} }}", list(&networks))
    }
}

/// A port, or 0 where none is named.
pub(super) struct Port;

impl Kind for Port {
    type Value = u16;

    fn read<'a>(&self, given: Given<'a>, path: &str, validator: &mut Validator<'a>) -> Option<u16> {
        let number = Integer(1..=65_535).read(given, path, validator)?;
        u16::try_from(number).ok()
    }

    fn show(&self, value: &u16) -> String {
        value.to_string()
    }
}

/// The workers of a service.
pub(super) struct Workers;

impl Kind for Workers {
    type Value = Vec<Worker>;

    fn read<'a>(
        &self,
        given: Given<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<Worker>> {
        let tables = given.list().ok();
        let tables = tables.filter(|it| it.iter().all(|it| it.table().is_ok()));
        let Some(tables) = tables else {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "a worker is a name with an address",
                "workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]",
                REWRITE,
            );
            return None;
        };
        let worker =
            |(number, table)| validator.section::<Worker>(&format!("{path}.{number}"), Some(table));
        Some(tables.into_iter().enumerate().map(worker).collect())
    }

    fn show(&self, value: &Vec<Worker>) -> String {
        let worker =
            |it: &Worker| format!("{{ name = {:?}, address = \"{}\" }}", it.name, it.address);
        let workers: Vec<String> = value.iter().map(worker).collect();
        format!("[{}]", workers.join(", "))
    }
}
