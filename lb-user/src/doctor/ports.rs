//! The manager's NAT ports: whether they overlap the kernel's range, or are used by programs here.

use std::{collections::BTreeSet, net::SocketAddr};

use super::Finding;
use crate::{config::PortRange, sockets::OpenSocket};

#[derive(Debug, Clone)]
pub struct PortFacts<'a> {
    pub nat_ports: PortRange,
    /// net.ipv4.ip_local_port_range
    pub kernel_ports: Option<PortRange>,
    pub sockets: &'a [OpenSocket],
    /// The addresses of the workers' servers.
    pub workers: &'a BTreeSet<SocketAddr>,
}

pub fn findings(facts: &PortFacts<'_>) -> Vec<Finding> {
    let mut findings = vec![range(facts)];
    findings.extend(in_use(facts));
    findings
}

fn range(facts: &PortFacts<'_>) -> Finding {
    let PortFacts {
        nat_ports,
        kernel_ports,
        ..
    } = facts;
    let Some(kernel) = kernel_ports else {
        return Finding::warning(
            "ports",
            "the kernel's range of ports for this host's own connections cannot be read",
            "sysctl net.ipv4.ip_local_port_range",
        );
    };
    if !nat_ports.overlaps(*kernel) {
        let found = format!("nat_ports {nat_ports} do not overlap the kernel's own, {kernel}");
        return Finding::ok("ports", found);
    }
    let first = nat_ports.last.saturating_add(1);
    let remedy = match first < 60_000 {
        true => format!("sysctl -w net.ipv4.ip_local_port_range=\"{first} 60999\""),
        false => format!(
            "memlb manager --set limits.nat_ports=4096-{}",
            kernel.first.saturating_sub(1)
        ),
    };
    Finding::problem(
        "ports",
        format!(
            "nat_ports {nat_ports} overlap {kernel}, from which the kernel takes this host's own ports \
             (net.ipv4.ip_local_port_range): one port could carry two connections, and no manager starts"
        ),
        remedy,
    )
}

/// Reports a program that has bound a NAT port itself, and so would share it with a client's connection.
fn in_use(facts: &PortFacts<'_>) -> Option<Finding> {
    let socket = facts.sockets.iter().find(|socket| {
        !socket.is_listening
            && facts.nat_ports.contains(socket.local.port())
            && facts.workers.contains(&socket.remote)
    })?;
    let OpenSocket { local, remote, .. } = socket;
    Some(Finding::problem(
        "ports",
        format!(
            "a program here is connected from {local}, one of nat_ports, to the worker's server at \
             {remote}: memlb may use the same port for a client"
        ),
        format!(
            "ss -tnp 'sport = :{}'    (and configure that program not to choose its port)",
            local.port()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn examine(nat: (u16, u16), kernel: (u16, u16), sockets: &[OpenSocket]) -> Vec<Finding> {
        let range = |(first, last)| PortRange { first, last };
        findings(&PortFacts {
            nat_ports: range(nat),
            kernel_ports: Some(range(kernel)),
            sockets,
            workers: &["192.168.56.103:8081".parse().unwrap()].into(),
        })
    }

    #[test]
    fn reports_overlapping_ranges_with_a_remedy() {
        let usual = (32_768, 60_999);
        let fine = examine((4096, 32_767), usual, &[]);
        assert_eq!(fine.len(), 1);
        assert_eq!(fine[0].severity, Severity::Ok);
        let wide = &examine((4096, 32_767), (1024, 60_999), &[])[0];
        let remedy = "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"";
        wide.assert(Severity::Problem, "", remedy);
        let high = &examine((4096, 65_000), usual, &[])[0];
        high.assert(Severity::Problem, "", "limits.nat_ports=4096-32767");
    }

    #[test]
    fn reports_a_port_that_is_taken_already() {
        let socket = |port, remote: &str, is_listening| OpenSocket {
            local: ([192, 168, 56, 101], port).into(),
            remote: remote.parse().unwrap(),
            is_listening,
        };
        let sockets = [
            socket(8080, "0.0.0.0:0", true),
            socket(5000, "192.168.56.103:8081", false),
            socket(5001, "192.168.56.10:40000", false),
        ];
        let found = examine((4096, 32_767), (32_768, 60_999), &sockets);
        found[1].assert(Severity::Problem, "", "sport = :5000");
        assert_eq!(examine((6000, 32_767), (32_768, 60_999), &sockets).len(), 1);
    }
}
