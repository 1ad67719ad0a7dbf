//! Hints at a firewall: does nftables drop by default what memlb needs let in?

use std::process::Command;

use serde_json::Value;

use super::Finding;

/// A port that must be let in to this host itself. What memlb steers is taken before any firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub protocol: &'static str,
    pub port: u16,
    pub what: String,
}

/// Returns the ruleset; nothing where there is no nft, or this user may not ask it.
pub fn gather() -> Option<Value> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .output()
        .ok()?;
    let ruleset = serde_json::from_slice(&output.stdout).ok()?;
    output.status.success().then_some(ruleset)
}

pub fn findings(ruleset: Option<&Value>, needed: &[Needed]) -> Vec<Finding> {
    let Some(ruleset) = ruleset else {
        return Vec::new();
    };
    let objects = ruleset["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let dropping = objects
        .iter()
        .map(|it| &it["chain"])
        .find(|chain| chain["hook"] == "input" && chain["policy"] == "drop");
    let Some(chain) = dropping else {
        return vec![Finding::ok("firewall", "nftables lets in by default")];
    };
    let text = |field| chain[field].as_str().unwrap_or_default();
    let place = format!("{} {} {}", text("family"), text("table"), text("name"));
    let accepted = |needed: &Needed| {
        let rules = objects
            .iter()
            .filter_map(|it| it["rule"]["expr"].as_array());
        rules
            .filter(|expr| expr.iter().any(|it| it.get("accept").is_some()))
            .flatten()
            .any(|expr| names_port(&expr["match"], needed.port))
    };
    let closed: Vec<Finding> = needed
        .iter()
        .filter(|needed| !accepted(needed))
        .map(|Needed { protocol, port, what }| {
            Finding::warning(
                "firewall",
                format!("chain {place} drops by default, and no rule names {protocol} {port} ({what})"),
                format!("nft insert rule {place} {protocol} dport {port} accept"),
            )
        })
        .collect();
    match closed.is_empty() {
        true => vec![Finding::ok(
            "firewall",
            format!("chain {place} lets in what memlb needs"),
        )],
        false => closed,
    }
}

/// Whether a rule's match on a destination port includes this one.
fn names_port(matching: &Value, port: u16) -> bool {
    matching["left"]["payload"]["field"] == "dport" && includes(&matching["right"], port)
}

fn includes(value: &Value, port: u16) -> bool {
    match value {
        Value::Number(number) => number.as_u64() == Some(port.into()),
        Value::Array(values) => values.iter().any(|value| includes(value, port)),
        Value::Object(object) => match object.get("range").and_then(Value::as_array) {
            Some(range) => {
                let bound = |at: usize| range.get(at).and_then(Value::as_u64);
                bound(0).is_some_and(|first| first <= port.into())
                    && bound(1).is_some_and(|last| last >= port.into())
            }
            None => object.values().any(|value| includes(value, port)),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Verdict;

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

    #[test]
    fn tells_a_port_that_is_closed_by_default() {
        let needed = [Needed {
            protocol: "udp",
            port: 9999,
            what: "heartbeats".to_owned(),
        }];
        let examine = |ruleset: Value| findings(Some(&ruleset), &needed).remove(0);
        let closed = examine(ruleset("drop", json!(22)));
        assert_eq!(closed.verdict, Verdict::Warning);
        assert_eq!(
            closed.remedy.as_deref(),
            Some("nft insert rule inet filter input udp dport 9999 accept")
        );
        for open in [
            json!(9999),
            json!({"set": [22, 9999]}),
            json!({"set": [22, {"range": [9000, 10_000]}]}),
            json!({"range": [9999, 9999]}),
        ] {
            assert_eq!(examine(ruleset("drop", open)).verdict, Verdict::Ok);
        }
        assert_eq!(examine(ruleset("accept", json!(22))).verdict, Verdict::Ok);
        assert_eq!(findings(None, &needed), []);
    }
}
