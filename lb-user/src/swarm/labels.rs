//! The labels of a Swarm service whose tasks become workers.

use std::collections::BTreeMap;

use lb_core::{Protocol, unknown_name};

use crate::membership::parse_weight;

const PREFIX: &str = "memlb.";
const SERVICE: &str = "memlb.service";
const PORT: &str = "memlb.port";
const WEIGHT: &str = "memlb.weight";
const KNOWN: [&str; 3] = [SERVICE, PORT, WEIGHT];

/// The label of a node with its workers' name, instead of the host name.
pub const NAME: &str = "memlb.name";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// The name of memlb's service.
    pub service: String,
    /// The container's port.
    pub port: Option<(u16, Protocol)>,
    /// In percent.
    pub weight: u32,
}

impl Labels {
    /// Parses the labels of a service; `None` if none is memlb's.
    ///
    /// # Errors
    ///
    /// Names the label that is not valid, and what is expected.
    pub fn parse(labels: &BTreeMap<String, String>) -> Option<Result<Self, String>> {
        let own = || labels.keys().filter(|it| it.starts_with(PREFIX));
        own().next()?;
        if let Some(unknown) = own().find(|it| !KNOWN.contains(&it.as_str())) {
            return Some(Err(unknown_name("label", unknown, &KNOWN)));
        }
        Some(Self::read(labels))
    }

    fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let service = labels.get(SERVICE).map(|it| it.trim());
        let service = service.filter(|it| !it.is_empty()).ok_or_else(|| {
            format!("the label {SERVICE} is missing: it names the service of memlb")
        })?;
        let weight = labels.get(WEIGHT).map(|it| parse_weight(it));
        let weight = weight
            .transpose()
            .map_err(|problem| format!("{WEIGHT}: {problem}"))?;
        Ok(Self {
            service: service.to_owned(),
            port: labels.get(PORT).map(|it| port(it)).transpose()?,
            weight: weight.unwrap_or(100),
        })
    }
}

fn port(text: &str) -> Result<(u16, Protocol), String> {
    let (number, protocol) = match text.trim().split_once('/') {
        Some((number, "tcp")) => (number, Some(Protocol::Tcp)),
        Some((number, "udp")) => (number, Some(Protocol::Udp)),
        Some((number, _)) => (number, None),
        None => (text.trim(), Some(Protocol::Tcp)),
    };
    match (number.parse(), protocol) {
        (Ok(number @ 1..), Some(protocol)) => Ok((number, protocol)),
        _ => Err(format!(
            "{PORT} is {text:?}, and must be the container's port, as in 8080 or 53/udp"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, &str)]) -> Option<Result<Labels, String>> {
        let labels = labels.iter();
        Labels::parse(
            &labels
                .map(|(name, value)| (String::from(*name), String::from(*value)))
                .collect(),
        )
    }

    #[test]
    fn services_opt_in_by_label() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[("com.docker.stack.namespace", "shop")]), None);
        let labels = |port, weight| {
            let service = "web".to_owned();
            Some(Ok(Labels {
                service,
                port,
                weight,
            }))
        };
        assert_eq!(parse(&[(SERVICE, "web")]), labels(None, 100));
        let all = [(SERVICE, "web"), (PORT, "8080"), (WEIGHT, "50%")];
        assert_eq!(parse(&all), labels(Some((8080, Protocol::Tcp)), 50));
        let datagrams = [(SERVICE, "web"), (PORT, "53/udp")];
        assert_eq!(parse(&datagrams), labels(Some((53, Protocol::Udp)), 100));
    }

    #[test]
    fn invalid_labels_are_reported() {
        for (labels, says) in [
            (
                &[(PORT, "80")] as &[_],
                "the label memlb.service is missing",
            ),
            (&[(SERVICE, " ")], "the label memlb.service is missing"),
            (
                &[(SERVICE, "web"), ("memlb.weigth", "5")],
                "did you mean memlb.weight?",
            ),
            (&[(SERVICE, "web"), (PORT, "0")], "memlb.port is \"0\""),
            (
                &[(SERVICE, "web"), (PORT, "80/sctp")],
                "as in 8080 or 53/udp",
            ),
            (
                &[(SERVICE, "web"), (PORT, "http")],
                "must be the container's port",
            ),
            (
                &[(SERVICE, "web"), (WEIGHT, "heavy")],
                "memlb.weight: a weight is",
            ),
        ] {
            let error = parse(labels).unwrap().unwrap_err();
            assert!(error.contains(says), "{labels:?}: {error}");
        }
    }
}
