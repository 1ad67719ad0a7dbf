//! Denied clients: their prefixes, and the list of them in the state file.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv6Net};
use lb_common::maps::DENIED_PREFIXES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address or a network of clients.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Prefix(IpNet);

impl Prefix {
    /// Returns the first address and the prefix length, which counts IPv4 as mapped into IPv6.
    pub fn mapped(self) -> (IpAddr, u32) {
        let length = u32::from(self.0.prefix_len());
        match self.0 {
            IpNet::V4(network) => (network.addr().into(), 96 + length),
            IpNet::V6(network) => (network.addr().into(), length),
        }
    }

    pub fn contains(self, client: IpAddr) -> bool {
        self.0.contains(&client)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(|it| it.to_canonical().into());
        let network: IpNet = address.or_else(|_| text.parse()).map_err(|_| {
            format!(
                "{text:?} is not a prefix: expected ADDRESS or ADDRESS/LENGTH, such as 203.0.113.7 or \
                 2001:db8::/32"
            )
        })?;
        if network.prefix_len() == 0 {
            return Err(format!(
                "{text} would deny every client: name networks, or stop the service"
            ));
        }
        if network.trunc() != network {
            return Err(format!(
                "{text} has bits beyond its length: write {} for the network, or {} for the address alone",
                network.trunc(),
                network.addr()
            ));
        }
        match network {
            IpNet::V6(network) if contains_mapped_ipv4(network) => Err(format!(
                "{text} contains IPv4 addresses mapped into IPv6: write an IPv4 prefix"
            )),
            network => Ok(Self(network)),
        }
    }
}

/// Whether the network contains ::ffff:0:0/96, or is part of it.
fn contains_mapped_ipv4(network: Ipv6Net) -> bool {
    let mapped = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    network.contains(&mapped) || network.addr().to_ipv4_mapped().is_some()
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// A denied prefix, with author, time and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Denied {
    pub prefix: Prefix,
    pub by: String,
    /// Milliseconds since 1970 by the operator's clock.
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is denied by {}", self.prefix, self.by)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// All denied prefixes, sorted by address. Its JSON form is in the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Denied>", into = "Vec<Denied>")]
pub struct DenyList(Vec<Denied>);

impl From<Vec<Denied>> for DenyList {
    fn from(mut list: Vec<Denied>) -> Self {
        list.sort_by_key(|denied| denied.prefix);
        list.dedup_by_key(|denied| denied.prefix);
        Self(list)
    }
}

impl From<DenyList> for Vec<Denied> {
    fn from(list: DenyList) -> Self {
        list.0
    }
}

/// Why a change of the list was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyError {
    #[error(
        "{DENIED_PREFIXES} prefixes are denied at most, and {present} are already: remove some, or \
         deny larger networks"
    )]
    Full { present: usize },
    #[error("{prefix} is not denied; `memlb deny list` shows what is")]
    Absent { prefix: Prefix },
    #[error("{prefix} is denied only as part of {within}: remove that prefix")]
    Within { prefix: Prefix, within: Prefix },
}

impl DenyList {
    pub fn iter(&self) -> impl Iterator<Item = &Denied> {
        self.0.iter()
    }

    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.0.iter().map(|denied| denied.prefix)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the longest prefix that denies a client.
    pub fn of(&self, client: IpAddr) -> Option<&Denied> {
        let denying = self.0.iter().filter(|it| it.prefix.contains(client));
        denying.max_by_key(|it| it.prefix.mapped().1)
    }

    /// Returns the prefixes that overlap this one.
    pub fn overlapping(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> {
        let overlaps =
            move |other: &Prefix| other.0.contains(&prefix.0) || prefix.0.contains(&other.0);
        self.prefixes().filter(overlaps)
    }

    /// Adds prefixes, or replaces them.
    ///
    /// # Errors
    ///
    /// The list would be too long. It then stays unchanged.
    pub fn add(&mut self, new: &[Denied]) -> Result<(), DenyError> {
        let mut list = self.0.clone();
        for denied in new {
            match list.binary_search_by_key(&denied.prefix, |it| it.prefix) {
                Ok(at) => list[at] = denied.clone(),
                Err(at) => list.insert(at, denied.clone()),
            }
        }
        if list.len() > DENIED_PREFIXES as usize {
            let present = self.len();
            return Err(DenyError::Full { present });
        }
        self.0 = list;
        Ok(())
    }

    /// Removes prefixes, and returns them.
    ///
    /// # Errors
    ///
    /// Names the first prefix that is not on the list, which then stays unchanged.
    pub fn remove(&mut self, prefixes: &[Prefix]) -> Result<Vec<Denied>, DenyError> {
        for prefix in prefixes.iter().copied() {
            if self.prefixes().any(|it| it == prefix) {
                continue;
            }
            let (first, length) = prefix.mapped();
            return Err(match self.of(first).map(|it| it.prefix) {
                Some(within) if within.mapped().1 < length => DenyError::Within { prefix, within },
                _ => DenyError::Absent { prefix },
            });
        }
        let (removed, kept) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|it| prefixes.contains(&it.prefix));
        self.0 = kept;
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(prefix: &str) -> Denied {
        Denied {
            prefix: prefix.parse().unwrap(),
            by: "root".to_owned(),
            at_ms: 1,
            reason: None,
        }
    }

    #[test]
    fn prefixes_are_parsed_and_validated() {
        for text in ["203.0.113.7", "10.0.0.0/8", "2001:db8::/32", "2001:db8::1"] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), text);
        }
        let mapped: Prefix = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(mapped.to_string(), "10.0.0.1");
        assert_eq!(mapped.mapped().1, 128);
        for (text, said) in [
            ("10.0.0.1/8", "write 10.0.0.0/8 for the network"),
            ("0.0.0.0/0", "every client"),
            ("::/0", "every client"),
            ("::/8", "IPv4"),
            ("::ffff:0:0/96", "IPv4"),
            ("::ffff:10.0.0.0/104", "IPv4"),
            ("10.0.0.0/33", "not a prefix"),
            ("example.com", "not a prefix"),
            ("", "not a prefix"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn prefixes_are_added_found_and_removed() {
        let mut list = DenyList::default();
        let new = ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"].map(denied);
        list.add(&new).unwrap();
        list.add(&new[..1]).unwrap();
        assert_eq!(list.len(), 3);
        let of = |client: &str| {
            list.of(client.parse().unwrap())
                .map(|it| it.prefix.to_string())
        };
        assert_eq!(of("10.1.2.3").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(of("10.2.2.3").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(of("2001:db8::9").as_deref(), Some("2001:db8::/32"));
        assert_eq!(of("192.0.2.1"), None);

        let prefix = |text: &str| text.parse().unwrap();
        let within = list.remove(&[prefix("10.2.0.1")]).unwrap_err().to_string();
        assert!(within.contains("as part of 10.0.0.0/8"), "{within}");
        let absent = list.remove(&[prefix("10.0.0.0/8"), prefix("192.0.2.1")]);
        assert!(
            absent
                .unwrap_err()
                .to_string()
                .contains("192.0.2.1 is not denied")
        );
        assert_eq!(list.len(), 3);
        assert_eq!(
            list.remove(&[prefix("10.0.0.0/8")]).unwrap(),
            [new[0].clone()]
        );
        assert_eq!(list.len(), 2);
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<DenyList>(&text).unwrap(), list);
    }

    #[test]
    fn number_of_denied_prefixes_is_bounded() {
        let mut list = DenyList::default();
        let address = |number: u32| denied(&std::net::Ipv4Addr::from(number).to_string());
        let many: Vec<Denied> = (1..=DENIED_PREFIXES).map(address).collect();
        list.add(&many).unwrap();
        let more = [address(DENIED_PREFIXES + 1)];
        assert!(list.add(&more).unwrap_err().to_string().contains("at most"));
        assert_eq!(list.len(), DENIED_PREFIXES as usize);
        list.add(&many[..9]).unwrap();
    }
}
