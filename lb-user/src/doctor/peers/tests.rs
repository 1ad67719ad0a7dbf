//! Pairs as they are set up, and what is wrong with them.

use std::fs;

use super::*;
use crate::{config::Overrides, doctor::Severity};

const CONFIG: &str = r#"
    [manager]
    interfaces = ["eth1"]
    nat_sources = ["192.168.56.21"]
    peer_listen = "10.0.9.1:9997"
    [[peer]]
    name = "manager2"
    address = "10.0.9.2:9997"
    [[service]]
    name = "web"
    address = "192.168.56.101:80"
    fallback = "reject"
    workers = [{ name = "worker1", address = "192.168.56.103:8081" }]
"#;

fn config() -> Config {
    Config::parse(CONFIG, "memlb.toml", &Overrides::default(), None).unwrap()
}

fn own(addresses: &[&str]) -> Addresses {
    let addresses = addresses
        .iter()
        .map(|it| (it.parse().unwrap(), "eth1".to_owned()));
    Addresses(addresses.collect())
}

fn connected() -> PeerStatus {
    PeerStatus {
        name: "manager2".to_owned(),
        state: PeerState::Connected,
        complete: true,
        received_complete: true,
        configuration_matches: Some(true),
        nat_sources: vec!["192.168.56.22".parse().unwrap()],
        version: "0.1.0".to_owned(),
        ..PeerStatus::default()
    }
}

fn status(peer: PeerStatus) -> Status {
    let mut status = crate::doctor::manager::tests::status();
    status.peers = vec![peer];
    status
}

/// keepalived's configuration with these instances, each of (name, addresses, more lines).
fn keepalived(instances: &[(&str, &str, &str)]) -> Vrrp {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keepalived.conf");
    let mut text = "track_file memlb {\nfile /run/memlb/vrrp-weight\nweight 20\n}\n".to_owned();
    for (name, addresses, more) in instances {
        text += &format!(
            "vrrp_instance {name} {{\nvirtual_ipaddress {{\n{addresses}\n}}\n{more}\n}}\n"
        );
    }
    fs::write(&file, text).unwrap();
    vrrp::read(&file).unwrap().unwrap()
}

const TRACK: &str = "track_file {\nmemlb\n}";

fn good_vrrp() -> Vrrp {
    keepalived(&[(
        "memlb",
        "192.168.56.101\n192.168.56.21\n192.168.56.22",
        TRACK,
    )])
}

struct Pair {
    config: Config,
    addresses: Addresses,
    status: Option<Status>,
}

impl Pair {
    fn active() -> Self {
        Self {
            config: config(),
            addresses: own(&["192.168.56.101", "192.168.56.21", "10.0.9.1"]),
            status: Some(status(connected())),
        }
    }

    fn examine(&self, change: impl FnOnce(&mut PeerFacts<'_>)) -> Vec<Finding> {
        let mut facts = PeerFacts {
            config: &self.config,
            addresses: &self.addresses,
            status: self.status.as_ref(),
            keys: [("/etc/memlb/peer.key".into(), Ok("0000000a".to_owned()))].into(),
            links: [([10, 0, 9, 2].into(), "eth2".to_owned())].into(),
            attempts: BTreeMap::new(),
            movers: vec!["keepalived"],
            vrrp: Ok(Some(good_vrrp())),
            track_file: Ok(Some(0)),
        };
        change(&mut facts);
        findings(&facts)
    }
}

/// The only finding that is not good.
fn fault(found: &[Finding]) -> &Finding {
    let mut faults = found.iter().filter(|it| it.severity != Severity::Ok);
    let fault = faults
        .next()
        .unwrap_or_else(|| panic!("all is good: {found:?}"));
    assert_eq!(faults.next(), None, "{found:?}");
    fault
}

#[test]
fn healthy_pair_has_no_problem_on_either_machine() {
    let mut pair = Pair::active();
    for addresses in [pair.addresses.clone(), own(&["10.0.9.1"])] {
        pair.addresses = addresses;
        let found = pair.examine(|_| {});
        let faults = found.iter().filter(|it| it.severity != Severity::Ok);
        assert_eq!(faults.count(), 0, "{found:?}");
    }
    let alone = Config::example(&Overrides::default(), None).unwrap();
    pair.config = alone;
    assert_eq!(pair.examine(|_| {}), []);
}

#[test]
fn each_fault_of_the_pair_has_its_remedy() {
    type Fault = fn(&mut PeerFacts<'_>);
    let pair = Pair::active();
    let faults: [(&str, &str, Fault); 8] = [
        ("peer.key: no", "--output /etc/memlb/none/peer.key", |it| {
            it.keys = [(
                "/etc/memlb/none/peer.key".into(),
                Err("peer.key: no".to_owned()),
            )]
            .into();
        }),
        ("carries clients or workers", "a separate link", |it| {
            it.links = [([10, 0, 9, 2].into(), "eth1".to_owned())].into();
        }),
        ("no route to manager2", "ip route get", |it| {
            it.links.clear();
        }),
        ("keepalived does not run", "systemctl enable", |it| {
            it.movers.clear();
        }),
        ("has 192.168.56.22", "virtual_ipaddress", |it| {
            it.vrrp = Ok(Some(keepalived(&[(
                "memlb",
                "192.168.56.101\n192.168.56.21",
                TRACK,
            )])));
        }),
        ("two vrrp_instances", "one vrrp_instance", |it| {
            let nat = "192.168.56.21\n192.168.56.22";
            let apart = [("a", "192.168.56.101", TRACK), ("b", nat, TRACK)];
            it.vrrp = Ok(Some(keepalived(&apart)));
        }),
        ("does not track", "add track_file", |it| {
            let all = "192.168.56.101\n192.168.56.21\n192.168.56.22";
            it.vrrp = Ok(Some(keepalived(&[("memlb", all, "")])));
        }),
        ("handed over", "--undo", |it| it.track_file = Ok(Some(-1))),
    ];
    for (found, remedy, change) in faults {
        let all = pair.examine(change);
        let fault = fault(&all);
        fault.assert(fault.severity, found, remedy);
    }
}

#[test]
fn split_addresses_are_a_problem() {
    let mut pair = Pair::active();
    pair.addresses = own(&["192.168.56.101", "10.0.9.1"]);
    let found = pair.examine(|_| {});
    fault(&found).assert(Severity::Problem, "but not 192.168.56.21", "");
}

#[test]
fn reports_why_there_is_no_session() {
    let mut pair = Pair::active();
    pair.status = Some(status(PeerStatus {
        state: PeerState::Connecting,
        reason: Some("timed out".to_owned()),
        ..connected()
    }));
    let address = "10.0.9.2:9997".parse().unwrap();
    for (attempt, said) in [
        (Attempt::Refused, "nothing listens there"),
        (Attempt::Silent, "nothing answers there"),
        (Attempt::Connected(Default::default()), "it answers there"),
    ] {
        let found = pair.examine(|it| it.attempts = [(address, attempt)].into());
        assert!(fault(&found).found.contains(said), "{found:?}");
    }
    pair.status = Some(status(PeerStatus {
        configuration_matches: Some(false),
        version: "0.2.0".to_owned(),
        ..connected()
    }));
    let found = pair.examine(|_| {});
    let mut faults = found.iter().filter(|it| it.severity != Severity::Ok);
    (faults.next().unwrap()).assert(Severity::Warning, "", "--shared");
    (faults.next().unwrap()).assert(Severity::Warning, "0.2.0", "");
    pair.status = Some(crate::doctor::manager::tests::status());
    fault(&pair.examine(|_| {})).assert(Severity::Warning, "does not know peer", "");
}
