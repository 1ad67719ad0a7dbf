//! Parsers of values that TOML has no type for: durations, thresholds, port ranges, addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use lb_core::{MaxShare, Threshold};

use super::error::{BadValue, ProblemKind};

lb_common::named_enum! {
    /// Where in the kernel the programs attach.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Attach {
        Auto = "auto",
        Tc = "tc",
        Xdp = "xdp",
    }
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports these are.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Parses a duration such as `1500ms` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, BadValue> {
    humantime::parse_duration(text.trim()).map_err(|error| BadValue {
        kind: ProblemKind::BadDuration,
        what: format!("{text:?} is not a duration: {error}"),
        expected: "a number with a unit: ms, s, m, h".into(),
        remedy: match text.trim().parse::<u64>() {
            Ok(number) => format!("write \"{number}ms\" or \"{number}s\""),
            Err(_) => "write for instance \"1500ms\" or \"1h 30m\"".to_owned(),
        },
    })
}

/// Formats a duration as the file has it.
pub(super) fn format_duration(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        return humantime::format_duration(duration).to_string();
    }
    match u64::try_from(duration.as_millis()) {
        Ok(ms) if Duration::from_millis(ms) == duration => format!("{ms}ms"),
        Ok(_) | Err(_) => humantime::format_duration(duration).to_string(),
    }
}

/// Parses a size such as `64MiB`.
pub fn size(text: &str) -> Option<u64> {
    match threshold(text) {
        Ok(Threshold::Bytes(bytes)) => Some(bytes),
        Ok(Threshold::Auto | Threshold::Percent(_)) | Err(_) => None,
    }
}

/// Parses a threshold: `auto`, a size, or a percentage.
pub(super) fn threshold(text: &str) -> Result<Threshold, BadValue> {
    const MAX_PERCENT: u32 = 1000;
    let bad = |what: String, remedy: &str| BadValue {
        kind: ProblemKind::BadThreshold,
        what,
        expected: "\"auto\", a size such as \"64MiB\", or a percentage such as \"10%\"".into(),
        remedy: remedy.to_owned(),
    };
    let trimmed = text.trim();
    if trimmed == "auto" {
        return Ok(Threshold::Auto);
    }
    if let Some(number) = trimmed.strip_suffix('%') {
        return match number.trim_end().parse() {
            Ok(percent) if percent <= MAX_PERCENT => Ok(Threshold::Percent(percent)),
            Ok(_) | Err(_) => Err(bad(
                format!("{text:?} is not a percentage"),
                "write a whole number from 0 to 1000 before the %",
            )),
        };
    }
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| {
        bad(
            format!("{text:?} is not a threshold"),
            "begin with a whole number; leave the setting out for \"auto\"",
        )
    })?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kib" => 10,
        "mib" => 20,
        "gib" => 30,
        "tib" => 40,
        _ => {
            return Err(bad(
                format!("{text:?} has an unknown unit"),
                "use B, KiB, MiB, GiB or TiB (1 MiB is 1,048,576 bytes)",
            ));
        }
    };
    let bytes = number.checked_mul(1 << shift);
    bytes
        .map(Threshold::Bytes)
        .ok_or_else(|| bad(format!("{text:?} exceeds 64 bits"), "write a smaller size"))
}

/// Parses a whole percentage such as `10%`, within `range`.
pub(super) fn percent(text: &str, range: &RangeInclusive<u32>) -> Result<u32, BadValue> {
    let (text, least, most) = (text.trim(), range.start(), range.end());
    let number = |text: &str| text.trim_end().parse::<u32>().ok();
    let with_sign = text.strip_suffix('%').and_then(number);
    if let Some(percent) = with_sign.filter(|percent| range.contains(percent)) {
        return Ok(percent);
    }
    let (what, remedy) = match (with_sign, number(text)) {
        (Some(_), _) => (
            "out of range",
            "write a percentage in this range".to_owned(),
        ),
        (_, Some(bare)) if range.contains(&bare) => {
            ("not a percentage", format!("write \"{bare}%\""))
        }
        _ => ("not a percentage", "write for instance \"50%\"".to_owned()),
    };
    Err(BadValue {
        kind: ProblemKind::BadPercent,
        what: format!("{text:?} is {what}"),
        expected: format!("a whole number followed by %, from \"{least}%\" to \"{most}%\"").into(),
        remedy,
    })
}

/// Parses the largest share: `auto`, or a percentage.
pub(super) fn max_share(text: &str) -> Result<MaxShare, BadValue> {
    if text.trim() == "auto" {
        return Ok(MaxShare::Auto);
    }
    percent(text, &(1..=100))
        .map(MaxShare::Percent)
        .map_err(|bad| BadValue {
            expected: "\"auto\", or a percentage from \"1%\" to \"100%\"".into(),
            ..bad
        })
}

/// Parses a range of ports such as `4096-32767`, in either order.
pub(super) fn port_range(text: &str) -> Result<PortRange, BadValue> {
    let ports = text.split_once('-').and_then(|(first, last)| {
        let port = |part: &str| u16::from_str(part.trim()).ok();
        Some((port(first)?, port(last)?))
    });
    match ports {
        Some((first, last)) => Ok(PortRange { first, last }),
        None => Err(BadValue {
            kind: ProblemKind::BadPortRange,
            what: format!("{text:?} is not a range of ports"),
            expected: "FIRST-LAST, each from 0 to 65535".into(),
            remedy: "write for instance \"4096-32767\"".to_owned(),
        }),
    }
}

/// Parses an address with a port other than 0.
pub(super) fn address(text: &str) -> Result<SocketAddr, BadValue> {
    let bad = |what: String, remedy: String| {
        Err(BadValue {
            kind: ProblemKind::BadAddress,
            what,
            expected: "an address and a port, as in \"192.168.56.101:80\" or \"[2001:db8::1]:80\""
                .into(),
            remedy,
        })
    };
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => bad(
            format!("{text:?} has port 0"),
            "write the port that the server listens on".to_owned(),
        ),
        Ok(address) if address.ip().to_canonical() != address.ip() => bad(
            format!("{text:?} is an IPv4 address written as an IPv6 one"),
            format!(
                "write \"{}:{}\"",
                address.ip().to_canonical(),
                address.port()
            ),
        ),
        Ok(address) => Ok(address),
        Err(_) => match text.trim_matches(['[', ']']).parse() {
            Ok(IpAddr::V4(address)) => bad(
                format!("{text:?} has no port"),
                format!("add the port: {address}:PORT"),
            ),
            Ok(IpAddr::V6(address)) => bad(
                format!("{text:?} has no port"),
                format!("add the port, and brackets before it: [{address}]:PORT"),
            ),
            Err(_) => {
                let (what, remedy) = no_address(text);
                bad(format!("{text:?} {what}"), remedy)
            }
        },
    }
}

/// Returns what is wrong with a text that is neither an address nor an address with a port, and the remedy.
fn no_address(text: &str) -> (&'static str, String) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let without_port = text.rsplit_once(':').map(|(address, port)| {
        let address = address.trim_matches(['[', ']']).parse::<IpAddr>();
        (address.is_ok(), port)
    });
    match without_port {
        Some((true, port)) if is_number(port) => (
            "has a port that does not exist",
            "write a port from 1 to 65535".to_owned(),
        ),
        None if is_number(text) => (
            "is a port without an address",
            format!("add the address: ADDRESS:{text}"),
        ),
        _ if text.contains('%') => (
            "names an interface, as only link-local addresses do",
            "write an address that is not link-local, and no interface".to_owned(),
        ),
        _ => (
            "is not an address",
            "write the address in numbers; names are not resolved".to_owned(),
        ),
    }
}

/// Parses an address of one machine on a network.
pub(super) fn host_address(text: &str) -> Result<SocketAddr, BadValue> {
    let address = address(text)?;
    let ip = address.ip();
    let (is_broadcast, is_link_local) = match ip {
        IpAddr::V4(ip) => (ip.is_broadcast(), false),
        IpAddr::V6(ip) => (false, ip.is_unicast_link_local()),
    };
    let unfit = [
        (ip.is_unspecified(), "means any address"),
        (ip.is_loopback(), "is a loopback address"),
        (ip.is_multicast(), "is a multicast address"),
        (is_broadcast, "is the broadcast address"),
        (
            is_link_local,
            "is a link-local address, which several links may have",
        ),
    ];
    match unfit.iter().find(|(unfit, _)| *unfit) {
        None => Ok(address),
        Some((_, why)) => Err(BadValue {
            kind: ProblemKind::BadAddress,
            what: format!("{ip} {why}"),
            expected: "the address of one machine on the network".into(),
            remedy: "write the address by which the machine is reached there".to_owned(),
        }),
    }
}

/// Parses an address at which one manager listens for its peers.
pub(super) fn peer_address(text: &str) -> Result<SocketAddr, BadValue> {
    let address = address(text)?;
    let ip = address.ip();
    match ip.is_unspecified() || ip.is_multicast() {
        false => Ok(address),
        true => Err(BadValue {
            kind: ProblemKind::BadAddress,
            what: format!("{ip} is not the address of one machine"),
            expected: "one address of that manager, best on a separate link between the managers"
                .into(),
            remedy: "write an address that `ip address` shows there, as in \"10.0.9.1:9997\""
                .to_owned(),
        }),
    }
}

/// The name of an address's family.
pub(super) fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}
