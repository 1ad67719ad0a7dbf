//! Whether this host's firewall accepts the packets that memlb needs.

use std::process::Command;

use serde_json::Value;

use super::{
    Finding,
    ruleset::{BlockingRule, FirstPacket, Ruleset},
};

/// A port of this host that the firewall must accept. Packets that memlb steers do not pass the firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredPort {
    pub protocol: &'static str,
    pub port: u16,
    pub is_ipv6: bool,
    /// What is blocked, and the effect.
    pub what: String,
}

/// Returns the ruleset; `None` without nft, or without the permission to read it.
pub fn gather() -> Option<Value> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .output()
        .ok()?;
    let ruleset = serde_json::from_slice(&output.stdout).ok()?;
    output.status.success().then_some(ruleset)
}

pub fn findings(
    ruleset: Option<&Value>,
    needed: &[RequiredPort],
    interfaces: &[String],
) -> Vec<Finding> {
    let Some(ruleset) = ruleset else {
        return Vec::new();
    };
    let rules = Ruleset::new(ruleset);
    let blocked = |needed: &RequiredPort| {
        let rule = rules.blocking(FirstPacket {
            is_ipv6: needed.is_ipv6,
            protocol: needed.protocol,
            port: needed.port,
            interfaces,
        })?;
        Some(finding(needed, &rule))
    };
    let mut closed: Vec<Finding> = needed.iter().filter_map(blocked).collect();
    // One rule may accept both families.
    closed.dedup_by(|one, other| one.remedy == other.remedy);
    match closed.is_empty() {
        true => vec![Finding::ok(
            "firewall",
            "nftables accepts the packets that memlb needs",
        )],
        false => closed,
    }
}

fn finding(needed: &RequiredPort, rule: &BlockingRule) -> Finding {
    let RequiredPort {
        protocol,
        port,
        what,
        ..
    } = needed;
    let BlockingRule {
        family,
        table,
        chain,
        by_policy,
    } = rule;
    let how = match by_policy {
        true => "drops by default, and no rule accepts",
        false => "has a rule that drops or rejects",
    };
    let remedy = match (table.as_str(), family.as_str(), chain.as_str()) {
        ("firewalld", ..) => format!(
            "firewall-cmd --permanent --add-port={port}/{protocol} && firewall-cmd --reload    \
             (in the interface's zone: --zone=ZONE)"
        ),
        (_, "ip" | "ip6", chain) if chain.starts_with("ufw") => {
            format!("ufw allow {port}/{protocol}")
        }
        ("filter", "ip", "INPUT") => {
            format!("iptables -I INPUT -p {protocol} --dport {port} -j ACCEPT")
        }
        ("filter", "ip6", "INPUT") => {
            format!("ip6tables -I INPUT -p {protocol} --dport {port} -j ACCEPT")
        }
        _ => format!("nft insert rule {family} {table} {chain} {protocol} dport {port} accept"),
    };
    Finding::warning(
        "firewall",
        format!("chain {family} {table} {chain} {how} {protocol} {port}: {what}"),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Severity;

    /// As nft 1.0 prints it.
    fn ruleset(policy: &str, dport: Value) -> Value {
        json!({"nftables": [
            {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "filter", "handle": 1}},
            {"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1,
                       "type": "filter", "hook": "input", "prio": 0, "policy": policy}},
            {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 4, "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
                           "right": dport}},
                {"accept": null}]}},
        ]})
    }

    fn heartbeats(is_ipv6: bool) -> RequiredPort {
        RequiredPort {
            protocol: "udp",
            port: 9999,
            is_ipv6,
            what: "no heartbeat arrives".to_owned(),
        }
    }

    #[test]
    fn reports_a_port_that_is_closed_by_default() {
        let needed = [heartbeats(false), heartbeats(true)];
        let examine = |ruleset: Value| {
            let mut found = findings(Some(&ruleset), &needed, &[]);
            assert_eq!(found.len(), 1);
            found.remove(0)
        };
        let remedy = "nft insert rule inet filter input udp dport 9999 accept";
        let says = "no rule accepts udp 9999";
        examine(ruleset("drop", json!(22))).assert(Severity::Warning, says, remedy);
        for open in [
            json!(9999),
            json!({"set": [22, 9999]}),
            json!({"set": [22, {"range": [9000, 10_000]}]}),
            json!({"range": [9999, 9999]}),
        ] {
            assert_eq!(examine(ruleset("drop", open)).severity, Severity::Ok);
        }
        assert_eq!(examine(ruleset("accept", json!(22))).severity, Severity::Ok);
        assert_eq!(findings(None, &needed, &[]), []);
    }

    #[test]
    fn names_the_tool_that_wrote_the_rules() {
        let remedy = |family: &str, table: &str, chain: &str| {
            let stop = BlockingRule {
                family: family.to_owned(),
                table: table.to_owned(),
                chain: chain.to_owned(),
                by_policy: false,
            };
            finding(&heartbeats(false), &stop).remedy.unwrap()
        };
        assert!(
            remedy("inet", "firewalld", "filter_INPUT").starts_with("firewall-cmd --permanent")
        );
        assert!(remedy("ip", "filter", "INPUT").starts_with("iptables -I INPUT -p udp"));
        assert!(remedy("ip6", "filter", "INPUT").starts_with("ip6tables"));
        assert_eq!(
            remedy("ip", "filter", "ufw-user-input"),
            "ufw allow 9999/udp"
        );
    }
}
