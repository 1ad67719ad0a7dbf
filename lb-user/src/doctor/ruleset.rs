//! Evaluates the rules that `nft -j list ruleset` prints for a new packet to this host: those of nftables, firewalld,
//! ufw and iptables-nft.
//!
//! Only protocol, destination port and interface of the packet are known. A rule with other conditions may match or
//! not: it counts only if it accepts and names the port.

use serde_json::Value;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub struct FirstPacket<'a> {
    pub is_ipv6: bool,
    pub protocol: &'a str,
    pub port: u16,
    /// The interfaces at which it may arrive.
    pub interfaces: &'a [String],
}

/// The chain that drops or rejects a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingRule {
    pub family: String,
    pub table: String,
    pub chain: String,
    /// Whether the chain's policy drops it, and not a rule.
    pub by_policy: bool,
}

/// The output of `nft`.
pub struct Ruleset<'a> {
    objects: &'a [Value],
}

/// The result of a rule or a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ChainOutcome {
    Accept,
    Block(BlockingRule),
    /// The next rule decides.
    Continue,
    /// The rule after the one that jumped here decides.
    Return,
}

/// Whether a packet meets a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    Unknown,
    Yes,
}

/// The most nested jumps (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

impl<'a> Ruleset<'a> {
    pub fn new(json: &'a Value) -> Self {
        let objects = json["nftables"].as_array().map_or(&[][..], Vec::as_slice);
        Self { objects }
    }

    /// Returns the rule or policy that blocks the packet, if any.
    pub fn blocking(&self, packet: FirstPacket<'_>) -> Option<BlockingRule> {
        let family = if packet.is_ipv6 { "ip6" } else { "ip" };
        let is_of_family = |chain: &&Value| chain["family"] == "inet" || chain["family"] == family;
        let mut chains: Vec<&Value> = self
            .objects
            .iter()
            .map(|it| &it["chain"])
            .filter(|chain| matches!(chain["hook"].as_str(), Some("prerouting" | "input")))
            .filter(is_of_family)
            .collect();
        // A packet that one chain accepts continues to the next chain.
        chains.sort_by_key(|chain| (chain["hook"] == "input", chain["prio"].as_i64()));
        chains
            .into_iter()
            .find_map(|chain| self.base(chain, packet))
    }

    fn base(&self, chain: &Value, packet: FirstPacket<'_>) -> Option<BlockingRule> {
        match self.chain(chain, packet, 0) {
            ChainOutcome::Block(rule) => Some(rule),
            ChainOutcome::Accept => None,
            ChainOutcome::Continue | ChainOutcome::Return => {
                (chain["policy"] == "drop").then(|| blocking_rule(chain, true))
            }
        }
    }

    fn chain(&self, chain: &Value, packet: FirstPacket<'_>, depth: usize) -> ChainOutcome {
        let is_of = |rule: &&Value| {
            rule["family"] == chain["family"]
                && rule["table"] == chain["table"]
                && rule["chain"] == chain["name"]
        };
        let rules = self.objects.iter().map(|it| &it["rule"]).filter(is_of);
        for rule in rules {
            match self.rule(chain, rule, packet, depth) {
                ChainOutcome::Continue => {}
                end => return end,
            }
        }
        ChainOutcome::Continue
    }

    fn rule(
        &self,
        chain: &Value,
        rule: &Value,
        packet: FirstPacket<'_>,
        depth: usize,
    ) -> ChainOutcome {
        let mut certainty = Match::Yes;
        let mut names_port = false;
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let Some((kind, content)) = statement.as_object().and_then(|it| it.iter().next())
            else {
                continue;
            };
            match kind.as_str() {
                "match" => {
                    names_port |= is_port(&content["left"]);
                    certainty = certainty.min(self.matches(chain, content, packet));
                }
                // An extension of iptables that nft does not know.
                "xt" if content["type"] == "match" => certainty = certainty.min(Match::Unknown),
                "vmap" => {
                    let end = self.map(chain, content, packet, certainty, depth);
                    if end != ChainOutcome::Continue {
                        return end;
                    }
                }
                _ => {
                    let end = self.verdict(chain, kind, content, packet, depth);
                    let counts = match end {
                        ChainOutcome::Accept => certainty == Match::Yes || names_port,
                        _ => certainty == Match::Yes,
                    };
                    if end != ChainOutcome::Continue && counts {
                        return end;
                    }
                }
            }
            if certainty == Match::No {
                break;
            }
        }
        ChainOutcome::Continue
    }

    /// Evaluates a statement that may end the rule.
    fn verdict(
        &self,
        chain: &Value,
        kind: &str,
        content: &Value,
        packet: FirstPacket<'_>,
        depth: usize,
    ) -> ChainOutcome {
        let target = match kind {
            "xt" => content["name"].as_str().unwrap_or_default(),
            kind => kind,
        };
        match target {
            "accept" | "ACCEPT" => ChainOutcome::Accept,
            "drop" | "DROP" | "reject" | "REJECT" => {
                ChainOutcome::Block(blocking_rule(chain, false))
            }
            "return" => ChainOutcome::Return,
            "jump" | "goto" if depth < MAX_DEPTH => {
                let same_table = |it: &&Value| {
                    it["family"] == chain["family"]
                        && it["table"] == chain["table"]
                        && it["name"] == content["target"]
                };
                let mut chains = self.objects.iter().map(|it| &it["chain"]);
                let end = chains
                    .find(same_table)
                    .map_or(ChainOutcome::Continue, |it| {
                        self.chain(it, packet, depth + 1)
                    });
                match end {
                    ChainOutcome::Return | ChainOutcome::Continue if target == "goto" => {
                        ChainOutcome::Return
                    }
                    ChainOutcome::Return => ChainOutcome::Continue,
                    end => end,
                }
            }
            _ => ChainOutcome::Continue,
        }
    }

    /// Looks a packet up in a map of verdicts.
    fn map(
        &self,
        chain: &Value,
        content: &Value,
        packet: FirstPacket<'_>,
        certainty: Match,
        depth: usize,
    ) -> ChainOutcome {
        for pair in self.elements(chain, &content["data"]) {
            let (Some(key), Some(verdict)) = (pair.get(0), pair.get(1)) else {
                continue;
            };
            let found = self.has(chain, &content["key"], key, packet).min(certainty);
            let statement = verdict.as_object().and_then(|it| it.iter().next());
            if let (Match::Yes, Some((kind, content))) = (found, statement) {
                return self.verdict(chain, kind, content, packet, depth);
            }
        }
        ChainOutcome::Continue
    }

    fn matches(&self, chain: &Value, content: &Value, packet: FirstPacket<'_>) -> Match {
        let answer = self.has(chain, &content["left"], &content["right"], packet);
        match (content["op"].as_str(), answer) {
            (Some("==" | "in") | None, answer) => answer,
            (Some("!="), Match::Yes) => Match::No,
            (Some("!="), Match::No) => Match::Yes,
            _ => Match::Unknown,
        }
    }

    /// Whether the packet's field that `left` names is `right`, or one of its elements.
    fn has(&self, chain: &Value, left: &Value, right: &Value, packet: FirstPacket<'_>) -> Match {
        let elements = self.elements(chain, right);
        if !elements.is_empty() {
            let answers = elements.iter().map(|it| self.has(chain, left, it, packet));
            return answers.max().unwrap_or(Match::No);
        }
        let answer = |is: bool| if is { Match::Yes } else { Match::No };
        if is_port(left) {
            let of_protocol = &left["payload"]["protocol"];
            let protocol = *of_protocol == packet.protocol || *of_protocol == "th";
            return answer(protocol && contains(right, packet.port));
        }
        let protocol = |name: &str| match right {
            Value::String(text) => answer(text == name),
            Value::Number(number) => answer(number.as_u64() == number_of(name)),
            _ => Match::Unknown,
        };
        if left["payload"].is_object() {
            let field = left["payload"]["field"].as_str().unwrap_or_default();
            return match field {
                "protocol" | "nexthdr" => protocol(packet.protocol),
                _ if of_another(&left["payload"]["protocol"], packet) => Match::No,
                _ => Match::Unknown,
            };
        }
        let text = right.as_str().unwrap_or_default();
        match left["meta"]["key"].as_str().or(left["ct"]["key"].as_str()) {
            Some("l4proto") => protocol(packet.protocol),
            Some("nfproto") => answer(text == if packet.is_ipv6 { "ipv6" } else { "ipv4" }),
            Some("iif" | "iifname") => {
                let named = |name: &String| match text.strip_suffix('*') {
                    Some(begin) => name.starts_with(begin),
                    None => name == text,
                };
                answer(packet.interfaces.iter().any(named))
            }
            Some("state") => answer(text == "new"),
            Some("pkttype") => answer(text == "host"),
            _ => Match::Unknown,
        }
    }

    /// The elements of an anonymous or named set; empty for a single value.
    fn elements(&self, chain: &Value, value: &'a Value) -> Vec<&'a Value> {
        let listed = |value: &'a Value| -> Vec<&'a Value> {
            let all = value.as_array().into_iter().flatten();
            all.map(|it| it.get("elem").and_then(|it| it.get("val")).unwrap_or(it))
                .collect()
        };
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
            let sets = self.objects.iter();
            let mut sets = sets.flat_map(|it| [&it["set"], &it["map"]]);
            let same = |set: &&Value| {
                set["name"] == name
                    && set["family"] == chain["family"]
                    && set["table"] == chain["table"]
            };
            return sets
                .find(same)
                .map_or(Vec::new(), |set| listed(&set["elem"]));
        }
        match value {
            Value::Array(_) => listed(value),
            Value::Object(object) => object.get("set").map_or(Vec::new(), listed),
            _ => Vec::new(),
        }
    }
}

fn blocking_rule(chain: &Value, by_policy: bool) -> BlockingRule {
    let text = |field| chain[field].as_str().unwrap_or_default().to_owned();
    BlockingRule {
        family: text("family"),
        table: text("table"),
        chain: text("name"),
        by_policy,
    }
}

fn is_port(left: &Value) -> bool {
    left["payload"]["field"] == "dport"
}

/// Whether a value is a port, or a range contains it.
fn contains(value: &Value, port: u16) -> bool {
    if let Some(range) = value.get("range").and_then(Value::as_array) {
        let bound = |at: usize| range.get(at).and_then(Value::as_u64);
        return bound(0).is_some_and(|first| first <= port.into())
            && bound(1).is_some_and(|last| last >= port.into());
    }
    value.as_u64() == Some(port.into())
}

/// Whether the packet has no header of this protocol.
fn of_another(protocol: &Value, packet: FirstPacket<'_>) -> bool {
    match protocol.as_str() {
        Some("ip") => packet.is_ipv6,
        Some("ip6") => !packet.is_ipv6,
        Some(other) => other != packet.protocol && other != "th" && other != "ether",
        None => false,
    }
}

fn number_of(protocol: &str) -> Option<u64> {
    match protocol {
        "tcp" => Some(6),
        "udp" => Some(17),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(family: &str, table: &str, name: &str, policy: Option<&str>) -> Value {
        match policy {
            Some(policy) => json!({"chain": {"family": family, "table": table, "name": name,
                "type": "filter", "hook": "input", "prio": 0, "policy": policy}}),
            None => json!({"chain": {"family": family, "table": table, "name": name}}),
        }
    }

    fn rule(of: &Value, expr: Value) -> Value {
        let chain = &of["chain"];
        json!({"rule": {"family": chain["family"], "table": chain["table"], "chain": chain["name"],
            "expr": expr}})
    }

    fn meta(key: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}})
    }

    fn dport(protocol: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}},
            "right": right}})
    }

    fn state(right: Value) -> Value {
        json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": right}})
    }

    fn stops(objects: &[Value], protocol: &str, port: u16) -> Option<BlockingRule> {
        Ruleset::new(&json!({"nftables": objects})).blocking(FirstPacket {
            is_ipv6: false,
            protocol,
            port,
            interfaces: &["eth1".to_owned()],
        })
    }

    #[test]
    fn a_policy_drops_what_no_rule_accepts() {
        let input = chain("inet", "filter", "input", Some("drop"));
        let accept = json!({"accept": null});
        let rules = [
            json!([state(json!(["established", "related"])), accept]),
            json!([state(json!("invalid")), {"drop": null}]),
            json!([meta("iif", json!("lo")), accept]),
            json!([
                meta("l4proto", json!({"set": ["icmp", "ipv6-icmp"]})),
                accept
            ]),
            json!([dport("udp", json!(9999)), accept]),
            json!([
                dport("tcp", json!({"set": [22, {"range": [8000, 8100]}]})),
                accept
            ]),
            json!([{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                "right": "10.0.0.1"}}, dport("tcp", json!(80)), accept]),
            json!([dport("tcp", json!("@web")), accept]),
        ];
        let rules = rules.map(|expr| rule(&input, expr));
        let set =
            json!({"set": {"family": "inet", "table": "filter", "name": "web", "elem": [443]}});
        let objects = [&[input, set][..], &rules].concat();
        for (protocol, port) in [
            ("udp", 9999),
            ("tcp", 22),
            ("tcp", 8080),
            ("tcp", 80),
            ("tcp", 443),
        ] {
            assert_eq!(stops(&objects, protocol, port), None, "{protocol} {port}");
        }
        for (protocol, port) in [("tcp", 9999), ("udp", 22), ("tcp", 25)] {
            let stop = stops(&objects, protocol, port).expect("dropped");
            assert!(stop.by_policy && stop.chain == "input", "{protocol} {port}");
        }
    }

    #[test]
    fn firewalld_rejects_at_the_end_of_a_chain_that_accepts_by_policy() {
        let input = chain("inet", "firewalld", "filter_INPUT", Some("accept"));
        let zones = chain("inet", "firewalld", "filter_INPUT_ZONES", None);
        let public = chain("inet", "firewalld", "filter_IN_public", None);
        let allowed = chain("inet", "firewalld", "filter_IN_public_allow", None);
        let reject = json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
        let objects = [
            rule(
                &input,
                json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
                ["established", {"accept": null}], ["invalid", {"drop": null}]]}}}]),
            ),
            rule(&input, json!([{"jump": {"target": "filter_INPUT_ZONES"}}])),
            rule(&input, json!([reject])),
            rule(
                &zones,
                json!([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [
                ["eth1", {"goto": {"target": "filter_IN_public"}}]]}}}]),
            ),
            rule(
                &public,
                json!([{"jump": {"target": "filter_IN_public_allow"}}]),
            ),
            rule(&allowed, json!([dport("tcp", json!(80)), {"accept": null}])),
            input,
            zones,
            public,
            allowed,
        ];
        assert_eq!(stops(&objects, "tcp", 80), None);
        let stop = stops(&objects, "udp", 9999).expect("rejected");
        assert_eq!((&*stop.table, stop.by_policy), ("firewalld", false));
    }

    #[test]
    fn iptables_ends_with_a_target() {
        for target in [
            json!({"reject": null}),
            json!({"xt": {"type": "target", "name": "REJECT"}}),
            json!({"drop": null}),
        ] {
            let input = chain("ip", "filter", "INPUT", Some("accept"));
            let ssh = json!([meta("l4proto", json!("tcp")), dport("tcp", json!(22)),
                {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]);
            let matched = json!([{"xt": {"type": "match", "name": "multiport"}}, {"drop": null}]);
            let objects = [
                rule(&input, ssh),
                rule(&input, matched),
                rule(
                    &input,
                    json!([{"counter": {"packets": 0, "bytes": 0}}, target]),
                ),
                input,
            ];
            assert_eq!(stops(&objects, "tcp", 22), None);
            assert!(stops(&objects, "tcp", 80).is_some());
            // These rules are for IPv4 only.
            let ruleset = json!({"nftables": objects});
            let six = Ruleset::new(&ruleset).blocking(FirstPacket {
                is_ipv6: true,
                protocol: "tcp",
                port: 80,
                interfaces: &[],
            });
            assert_eq!(six, None);
        }
    }
}
