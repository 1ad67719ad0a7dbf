//! Whether this machine has the addresses from which the manager connects to workers.

use std::net::IpAddr;

use super::Finding;
use crate::addresses::Addresses;

/// Checks `manager.nat_sources`. `interface` is the one that the remedy for a missing address names.
///
/// With peers, a standby lacks the addresses until it takes over.
pub fn findings(
    sources: &[IpAddr],
    addresses: &Addresses,
    interface: &str,
    has_peers: bool,
) -> Vec<Finding> {
    let finding = |source: &IpAddr| finding(*source, addresses, interface, has_peers);
    sources.iter().map(finding).collect()
}

fn finding(source: IpAddr, addresses: &Addresses, interface: &str, has_peers: bool) -> Finding {
    if let Some(interface) = addresses.interface_of(source) {
        return Finding::ok("nat_sources", format!("{source} is on {interface}"));
    }
    if has_peers {
        let found = format!("this machine does not have {source}, as on a standby");
        return Finding::ok("nat_sources", found);
    }
    let length = if source.is_ipv4() { 32 } else { 128 };
    Finding::problem(
        "nat_sources",
        format!(
            "{source} is on no interface of this machine: workers' answers to it do not arrive, and \
             connections from it fail"
        ),
        format!(
            "ip address add {source}/{length} dev {interface}    (or remove it from \
             manager.nat_sources)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn an_address_that_the_machine_lacks_is_a_problem() {
        let sources: [IpAddr; 3] = [
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
        ];
        let own = Addresses(vec![(sources[0], "eth1".to_owned())]);
        let standby = findings(&sources, &own, "eth2", true);
        assert!(standby.iter().all(|it| it.severity == Severity::Ok));
        let found = findings(&sources, &own, "eth2", false);
        assert_eq!(found[0].severity, Severity::Ok);
        assert_eq!(found[0].found, "10.0.0.1 is on eth1");
        for (finding, remedy) in [
            (&found[1], "ip address add 10.0.0.2/32 dev eth2 "),
            (&found[2], "ip address add fd00::1/128 dev eth2 "),
        ] {
            finding.assert(Severity::Problem, "", remedy);
        }
    }
}
