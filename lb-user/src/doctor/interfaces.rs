//! The configured interfaces: existence, state, attachment, offloads, MTU.

use std::collections::BTreeMap;

use super::{Finding, host::HostLink};
use crate::{
    config::Attach,
    datapath::{Interface, unsuited_to_xdp, xdp_drawback},
    processes::Unit,
    status,
};

#[derive(Debug, Clone)]
pub struct InterfaceFacts<'a> {
    /// `manager.interfaces`.
    pub interfaces: &'a [String],
    pub attach: Attach,
    pub links: &'a BTreeMap<String, HostLink>,
    /// The interface with a service's address, suggested if a configured one is missing.
    pub likely: Option<&'a str>,
    /// The interfaces as a running manager reports them.
    pub attached: &'a [status::InterfaceStatus],
}

pub fn findings(facts: &InterfaceFacts<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts
        .interfaces
        .iter()
        .flat_map(|name| match facts.links.get(name) {
            Some(link) => of_link(facts, name, link),
            None => vec![missing(facts, name)],
        })
        .collect();
    findings.extend(mtu(facts));
    findings
}

fn missing(facts: &InterfaceFacts<'_>, name: &str) -> Finding {
    let links = facts.links.keys().map(String::as_str);
    let others: Vec<&str> = links.filter(|name| *name != "lo").collect();
    let found = format!(
        "{name} does not exist here; there are {}",
        match others.is_empty() {
            true => "none but lo".to_owned(),
            false => others.join(", "),
        }
    );
    let right = facts.likely.or(others.first().copied()).unwrap_or("NAME");
    Finding::problem(
        "interface",
        found,
        format!(
            "memlb manager --interface {right}    (for good: manager.interfaces = [\"{right}\"])"
        ),
    )
}

fn of_link(facts: &InterfaceFacts<'_>, name: &str, link: &HostLink) -> Vec<Finding> {
    if !link.is_ethernet {
        return vec![Finding::problem(
            "interface",
            format!("{name} does not carry Ethernet: memlb steers Ethernet frames only"),
            "ip -br link    (and name another with --interface)",
        )];
    }
    if !link.is_up {
        return vec![Finding::problem(
            "interface",
            format!("{name} is down: no packet arrives there"),
            format!("ip link set {name} up"),
        )];
    }
    if !link.has_carrier {
        return vec![Finding::problem(
            "interface",
            format!("{name} is up but has no carrier: nothing is at the other end of its cable"),
            format!(
                "plug it in, or switch the port on; ethtool {name} shows the state of the link"
            ),
        )];
    }
    let mut findings = vec![
        Finding::ok("interface", format!("{name} is up, MTU {}", link.mtu)),
        attachment(facts, name, link),
    ];
    findings.extend(merging(name, link));
    findings
}

/// Leaves the choice between TC and XDP to the manager.
const AUTO: &str = "memlb manager --attach auto";

/// Reports how the programs are attached, or would be. The running manager's decision comes first.
fn attachment(facts: &InterfaceFacts<'_>, name: &str, link: &HostLink) -> Finding {
    let interface = Interface {
        index: link.index,
        name: name.to_owned(),
        kind: link.kind.clone(),
    };
    let harm = xdp_drawback(&interface);
    let mut attached = facts.attached.iter();
    if let Some(now) = attached.find(|it| it.name == name) {
        let found = format!("{name}: {} ({})", now.attachment, now.reason);
        return match (now.attachment.as_str(), harm) {
            ("none", _) => Finding::problem(
                "attachment",
                found,
                Unit::Manager.restart("restart the manager"),
            ),
            ("xdp", Some(harm)) => {
                Finding::warning("attachment", format!("{name}: xdp, but it is {harm}"), AUTO)
            }
            _ => Finding::ok("attachment", found),
        };
    }
    match (facts.attach, unsuited_to_xdp(&interface)) {
        (Attach::Tc, _) => Finding::ok(
            "attachment",
            format!("{name}: tc (attach = \"tc\" is configured)"),
        ),
        (Attach::Auto, Some(why)) => Finding::ok("attachment", format!("{name}: tc ({why})")),
        (Attach::Xdp, Some(why)) => Finding::warning(
            "attachment",
            format!(
                "{name}: attach = \"xdp\" is configured, but it is {}",
                harm.unwrap_or(why)
            ),
            AUTO,
        ),
        (requested, None) => {
            let driver = link.driver.as_deref().unwrap_or("unknown");
            let otherwise = match requested {
                Attach::Xdp => "the manager does not start if it cannot",
                _ => "tc if it cannot; memlb status shows it after the start",
            };
            Finding::ok(
                "attachment",
                format!("{name}: native XDP if its driver ({driver}) can, {otherwise}"),
            )
        }
    }
}

/// Merged packets are longer than the MTU, and cannot be forwarded.
fn merging(name: &str, link: &HostLink) -> Option<Finding> {
    (link.merges_received == Some(true)).then(|| {
        Finding::problem(
            "offload",
            format!(
                "{name} merges received packets (LRO): they are too long to be forwarded, and XDP \
                 does not run beside it"
            ),
            format!("ethtool -K {name} lro off"),
        )
    })
}

fn mtu(facts: &InterfaceFacts<'_>) -> Option<Finding> {
    let sizes = facts.interfaces.iter();
    let sizes: Vec<(&String, u32)> = sizes
        .filter_map(|name| Some((name, facts.links.get(name)?.mtu)))
        .collect();
    let (_, least) = sizes.iter().min_by_key(|(_, mtu)| *mtu)?;
    let larger: Vec<&(&String, u32)> = sizes.iter().filter(|(_, mtu)| mtu > least).collect();
    if larger.is_empty() {
        return None;
    }
    let all: Vec<String> = sizes
        .iter()
        .map(|(name, mtu)| format!("{name} {mtu}"))
        .collect();
    let lower: Vec<String> = larger
        .iter()
        .map(|(name, _)| format!("ip link set {name} mtu {least}"))
        .collect();
    Some(Finding::warning(
        "mtu",
        format!(
            "the interfaces differ ({}): senders of full packets from the larger one get ICMP errors \
             (packet too big), and packets that may be fragmented are dropped",
            all.join(", ")
        ),
        lower.join("; "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn link() -> HostLink {
        HostLink {
            index: 2,
            is_ethernet: true,
            is_up: true,
            has_carrier: true,
            mtu: 1500,
            ..HostLink::default()
        }
    }

    fn examine(
        attach: Attach,
        links: &[(&str, HostLink)],
        attached: &[status::InterfaceStatus],
    ) -> Vec<Finding> {
        let links = links
            .iter()
            .map(|(name, link)| ((*name).to_owned(), link.clone()))
            .collect();
        findings(&InterfaceFacts {
            interfaces: &["eth1".to_owned(), "eth2".to_owned()],
            attach,
            links: &links,
            likely: Some("eth3"),
            attached,
        })
    }

    fn of_first(attach: Attach, link: HostLink) -> Vec<Finding> {
        let mut findings = examine(attach, &[("eth1", link)], &[]);
        // The second one is missing in all cases.
        let (says, remedy) = ("eth2 does not exist", "memlb manager --interface eth3");
        (findings.pop().unwrap()).assert(Severity::Problem, says, remedy);
        findings
    }

    #[test]
    fn reports_what_is_wrong_with_an_interface() {
        type Case = (fn(&mut HostLink), &'static str, &'static str);
        let cases: [Case; 4] = [
            (|it| it.is_up = false, "down", "ip link set eth1 up"),
            (|it| it.has_carrier = false, "carrier", "ethtool eth1"),
            (|it| it.is_ethernet = false, "Ethernet", "--interface"),
            (
                |it| it.merges_received = Some(true),
                "LRO",
                "ethtool -K eth1 lro off",
            ),
        ];
        for (break_link, says, remedy) in cases {
            let mut link = link();
            break_link(&mut link);
            let findings = of_first(Attach::Auto, link);
            let worst = findings.iter().max_by_key(|it| it.severity).unwrap();
            worst.assert(Severity::Problem, says, remedy);
        }
    }

    #[test]
    fn reports_the_attach_mode_and_its_reason() {
        let veth = HostLink {
            kind: Some("veth".to_owned()),
            ..link()
        };
        let nic = HostLink {
            driver: Some("ixgbe".to_owned()),
            ..link()
        };
        let (ok, warning) = (Severity::Ok, Severity::Warning);
        let cases = [
            (Attach::Auto, &veth, ok, "tc (a virtual interface (veth)"),
            (Attach::Xdp, &veth, warning, "GRO on"),
            (Attach::Tc, &nic, ok, "is configured"),
            (
                Attach::Auto,
                &nic,
                ok,
                "native XDP if its driver (ixgbe) can, tc",
            ),
            (Attach::Xdp, &nic, ok, "does not start"),
        ];
        for (attach, link, verdict, says) in cases {
            of_first(attach, link.clone())[1].assert(verdict, says, "");
        }
    }

    #[test]
    fn takes_the_attach_mode_from_a_running_manager() {
        let attached = |attachment: &str| status::InterfaceStatus {
            name: "eth1".to_owned(),
            attachment: attachment.to_owned(),
            reason: "because".to_owned(),
            preceded_by: Vec::new(),
        };
        let findings = examine(Attach::Tc, &[("eth1", link())], &[attached("xdp")]);
        assert_eq!(findings[1].found, "eth1: xdp (because)");
        let veth = HostLink {
            kind: Some("veth".to_owned()),
            ..link()
        };
        let findings = examine(Attach::Xdp, &[("eth1", veth)], &[attached("xdp")]);
        findings[1].assert(Severity::Warning, "drops what XDP sends", "");
        let findings = examine(Attach::Tc, &[("eth1", link())], &[attached("none")]);
        assert_eq!(findings[1].severity, Severity::Problem);
    }

    #[test]
    fn warns_of_unequal_mtus() {
        let jumbo = HostLink {
            mtu: 9000,
            ..link()
        };
        let findings = examine(Attach::Tc, &[("eth1", link()), ("eth2", jumbo)], &[]);
        let last = findings.last().unwrap();
        assert_eq!((last.check, last.severity), ("mtu", Severity::Warning));
        assert_eq!(last.remedy.as_deref(), Some("ip link set eth2 mtu 1500"));
        let alike = examine(Attach::Tc, &[("eth1", link()), ("eth2", link())], &[]);
        assert!(alike.iter().all(|it| it.severity == Severity::Ok));
    }
}
