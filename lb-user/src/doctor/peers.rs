//! The peers: whether they are reachable, have the same key and settings, and keepalived moves the addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    Finding,
    keys::open_to_others,
    probe::{self, Attempt},
    services::list,
    vrrp::{self, Vrrp},
};
use crate::{
    addresses::Addresses,
    config::{Config, Peer},
    datapath::Netlink,
    handover,
    keys::read_peer_keys,
    peer::{PeerState, PeerStatus},
    peer_report::{problems, summary},
    processes,
    status::Status,
};

const CHECK: &str = "peer";
const VRRP: &str = "vrrp";
const KEEPALIVED: &str = "/etc/keepalived/keepalived.conf";

/// Programs that move addresses or routes.
const MOVERS: [&str; 3] = ["keepalived", "bird", "bgpd"];

#[derive(Debug)]
pub struct PeerFacts<'a> {
    pub config: &'a Config,
    pub addresses: &'a Addresses,
    /// `None` while no manager answers.
    pub status: Option<&'a Status>,
    /// The ids of each file's keys, or why it cannot be read.
    pub keys: BTreeMap<PathBuf, Result<String, String>>,
    /// The interface of the route to each peer.
    pub links: BTreeMap<IpAddr, String>,
    /// TCP connections to peers without a session.
    pub attempts: BTreeMap<SocketAddr, Attempt>,
    /// The running programs among [`MOVERS`].
    pub movers: Vec<&'static str>,
    pub vrrp: Result<Option<Vrrp>, String>,
    pub track_file: Result<Option<i32>, String>,
}

/// Gathers the facts about the peers.
///
/// # Errors
///
/// Routes cannot be looked up.
pub async fn gather<'a>(
    config: &'a Config,
    addresses: &'a Addresses,
    status: Option<&'a Status>,
) -> Result<PeerFacts<'a>> {
    let files: BTreeSet<&PathBuf> = config.peers.iter().map(|it| &it.key).collect();
    let keys = files.into_iter().map(|file| {
        let ids = read_peer_keys(file).map(|keys| {
            let ids: Vec<String> = keys.iter().map(|it| it.id().to_string()).collect();
            ids.join(" and ")
        });
        (file.clone(), ids.map_err(|error| format!("{error:#}")))
    });
    let peers = config.peers.iter().map(|it| it.address);
    let routes = Netlink::connect()?
        .routes(&peers.clone().map(|it| it.ip()).collect())
        .await?;
    let links = routes
        .into_iter()
        .filter_map(|(ip, route)| Some((ip, route?.interface_name())));
    let connected = |it: &&Peer| {
        let status = status_of(status, it);
        status.is_some_and(|it| it.state == PeerState::Connected)
    };
    let unconnected = config.peers.iter().filter(|it| !connected(it));
    Ok(PeerFacts {
        config,
        addresses,
        status,
        keys: keys.collect(),
        links: links.collect(),
        attempts: probe::connect(unconnected.map(|it| it.address)).await,
        movers: processes::running(&MOVERS),
        vrrp: vrrp::read(Path::new(KEEPALIVED)).map_err(|error| format!("{error:#}")),
        track_file: handover::read(&config.manager.track_file)
            .map_err(|error| format!("{error:#}")),
    })
}

fn status_of<'a>(status: Option<&'a Status>, peer: &Peer) -> Option<&'a PeerStatus> {
    let peers = &status?.peers;
    peers.iter().find(|it| it.name == peer.name)
}

pub fn findings(facts: &PeerFacts<'_>) -> Vec<Finding> {
    if facts.config.peers.is_empty() {
        return Vec::new();
    }
    let mut findings = listen(facts);
    findings.extend(facts.keys.iter().map(|(file, ids)| key(file, ids)));
    for peer in &facts.config.peers {
        findings.extend(session(facts, peer));
        findings.extend(own_link(facts, peer));
    }
    findings.extend(placement(facts));
    findings.extend(movers(facts));
    findings.extend(instances(facts));
    findings.extend(track_file(facts));
    findings
}

fn listen(facts: &PeerFacts<'_>) -> Vec<Finding> {
    let Some(listen) = facts.config.manager.peer_listen else {
        return Vec::new();
    };
    if facts.addresses.interface_of(listen.ip()).is_some() {
        return Vec::new();
    }
    vec![Finding::problem(
        CHECK,
        format!("manager.peer_listen, {listen}, is not an address of this machine"),
        format!(
            "set it to this machine's own address on the link to the peers; or ip address add {}/24 dev INTERFACE",
            listen.ip()
        ),
    )]
}

fn key(file: &Path, ids: &Result<String, String>) -> Finding {
    let shown = file.display();
    match ids {
        Ok(ids) => Finding::ok(CHECK, format!("{shown} has peer key {ids}")),
        Err(why) => {
            let remedy = match (file.exists(), open_to_others(file).is_empty()) {
                (false, _) => format!(
                    "memlb keygen --peer --output {shown}, on one of the managers, and copy the file to the other"
                ),
                (true, false) => {
                    format!(
                        "chmod 600 {shown}    (and make a new key if another user may have read it)"
                    )
                }
                (true, true) => format!("ls -la {shown}    (and repair or replace the file)"),
            };
            Finding::problem(CHECK, why.clone(), remedy)
        }
    }
}

/// Reports whether the session with the peer is established and in sync.
fn session(facts: &PeerFacts<'_>, peer: &Peer) -> Vec<Finding> {
    let Peer { name, address, .. } = peer;
    let Some(status) = facts.status else {
        return vec![check_reachability(facts, peer, "no manager runs here")];
    };
    let Some(seen) = status_of(Some(status), peer) else {
        return vec![Finding::warning(
            CHECK,
            format!("the running manager does not know peer {name}"),
            processes::Unit::Manager.restart("restart the manager"),
        )];
    };
    if seen.state != PeerState::Connected {
        let reason = seen.reason.as_deref().unwrap_or("it has not answered yet");
        return vec![check_reachability(facts, peer, reason)];
    }
    let mut findings = vec![Finding::ok(
        CHECK,
        format!("{name} at {address}: {}", summary(seen)),
    )];
    findings.extend(problems(seen).into_iter().map(|problem| {
        let remedy = match problem.contains("configuration") {
            true => "memlb check --shared    (on both; correct the file of one, and memlb reload there)",
            false => "memlb status    (this should end within seconds; otherwise read the logs of both managers)",
        };
        Finding::warning(CHECK, problem, remedy)
    }));
    if seen.version != status.version {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{name} runs memlb {}, and this manager {}",
                seen.version, status.version
            ),
            "upgrade the standby first, then hand over and upgrade the other",
        ));
    }
    findings
}

/// Reports why there is no session, with the result of a TCP connection.
fn check_reachability(facts: &PeerFacts<'_>, peer: &Peer, reason: &str) -> Finding {
    let Peer { name, address, .. } = peer;
    let (found, remedy) = match facts.attempts.get(address) {
        Some(Attempt::Connected(_)) if facts.status.is_none() => {
            return Finding::ok(CHECK, format!("{name} answers at {address}; {reason}"));
        }
        Some(Attempt::Connected(_)) => (
            "it answers there",
            "compare the key files of both managers (memlb doctor on the peer), and the names in manager.name and [[peer]]",
        ),
        Some(Attempt::Refused) => (
            "nothing listens there",
            "start the manager on the peer, with this address as its manager.peer_listen",
        ),
        _ => (
            "nothing answers there",
            "check that the peer's machine and the link to it are up, and that no firewall drops the port",
        ),
    };
    Finding::problem(
        CHECK,
        format!("no session with {name} at {address} ({found}): {reason}"),
        remedy,
    )
}

fn own_link(facts: &PeerFacts<'_>, peer: &Peer) -> Option<Finding> {
    let Peer { name, address, .. } = peer;
    let interfaces = &facts.config.manager.interfaces;
    let link = facts.links.get(&address.ip());
    let Some(link) = link else {
        return Some(Finding::problem(
            CHECK,
            format!("there is no route to {name} at {address}"),
            format!(
                "ip route get {}    (and bring the link to the peer up)",
                address.ip()
            ),
        ));
    };
    interfaces.contains(link).then(|| {
        Finding::warning(
            CHECK,
            format!(
                "the route to {name} uses {link}, which also carries clients or workers: its failure also separates the \
                 managers"
            ),
            "give the managers a separate link, and set peer_listen and [[peer]] to its addresses",
        )
    })
}

/// Checks that this machine has all addresses of services and NAT, or none: they move together.
fn placement(facts: &PeerFacts<'_>) -> Option<Finding> {
    let config = facts.config;
    let is_here = |ip: &IpAddr| facts.addresses.interface_of(*ip).is_some();
    let services: BTreeSet<IpAddr> = config.services.iter().map(|it| it.address.ip()).collect();
    let sources: BTreeSet<IpAddr> = config.manager.nat_sources.iter().copied().collect();
    let all: Vec<IpAddr> = services.union(&sources).copied().collect();
    let (here, absent): (Vec<IpAddr>, Vec<IpAddr>) = all.iter().partition(|ip| is_here(ip));
    let peers = facts.status.map_or(&[][..], |it| &it.peers);
    let is_any_connected = peers.iter().any(|it| it.state == PeerState::Connected);
    match (here.is_empty(), absent.is_empty()) {
        (_, true) => Some(Finding::ok(
            VRRP,
            format!("this machine has the addresses: {}", list(&here)),
        )),
        (true, false) if is_any_connected || facts.status.is_none() => Some(Finding::ok(
            VRRP,
            format!("standby: this machine does not have {}", list(&absent)),
        )),
        (true, false) => Some(Finding::warning(
            VRRP,
            format!(
                "this machine does not have {}, and no peer that could have them is connected",
                list(&absent)
            ),
            "systemctl status keepalived    (here and on the peer)",
        )),
        (false, false) => Some(Finding::problem(
            VRRP,
            format!(
                "the addresses are split: this machine has {}, but not {}: packets to the workers and their replies pass \
                 different managers",
                list(&here),
                list(&absent)
            ),
            "let one vrrp_instance of keepalived have all of them, on both machines",
        )),
    }
}

fn movers(facts: &PeerFacts<'_>) -> Option<Finding> {
    let has_configuration = !matches!(facts.vrrp, Ok(None));
    match (facts.movers.as_slice(), has_configuration) {
        ([], true) => Some(Finding::problem(
            VRRP,
            "keepalived does not run: this machine neither releases the addresses nor takes them over",
            "systemctl enable --now keepalived",
        )),
        ([], false) => Some(Finding::warning(
            VRRP,
            "neither keepalived nor a routing daemon runs here: no program moves the addresses when a machine fails",
            "set up keepalived as in docs/high-availability.md",
        )),
        (running, _) => Some(Finding::ok(VRRP, format!("{} runs", running.join(" and ")))),
    }
}

/// Checks that one vrrp_instance moves all addresses, or that their instances move together.
fn instances(facts: &PeerFacts<'_>) -> Vec<Finding> {
    let vrrp = match &facts.vrrp {
        Ok(Some(vrrp)) => vrrp,
        Ok(None) => return Vec::new(),
        Err(why) => {
            return vec![Finding::warning(
                VRRP,
                format!("keepalived's configuration cannot be read: {why}"),
                "run memlb doctor as root; keepalived --config-test",
            )];
        }
    };
    let config = facts.config;
    let services = config.services.iter().map(|it| it.address.ip());
    let peers = facts.status.map_or(&[][..], |it| &it.peers);
    let sources = config.manager.nat_sources.iter().copied();
    let sources = sources.chain(peers.iter().flat_map(|it| it.nat_sources.clone()));
    let all: BTreeSet<IpAddr> = services.chain(sources).collect();
    let lacking: Vec<IpAddr> = all
        .iter()
        .filter(|it| vrrp.instance_of(**it).is_none())
        .copied()
        .collect();
    let names: BTreeSet<&str> = all
        .iter()
        .filter_map(|it| Some(vrrp.instance_of(*it)?.name.as_str()))
        .collect();
    if !lacking.is_empty() && !names.is_empty() {
        return vec![Finding::problem(
            VRRP,
            format!(
                "no vrrp_instance in {KEEPALIVED} has {}: a peer that takes over does not get them",
                list(&lacking)
            ),
            "add them to virtual_ipaddress of the instance that has the service's address, on both machines",
        )];
    }
    let Some(first) = names.first() else {
        return vec![Finding::warning(
            VRRP,
            format!("no vrrp_instance in {KEEPALIVED} has an address of a service"),
            "set up keepalived as in docs/high-availability.md",
        )];
    };
    let mut findings = Vec::new();
    if let Some(apart) = names.iter().find(|it| !vrrp.move_together(first, it)) {
        findings.push(Finding::problem(
            VRRP,
            format!(
                "addresses of services and of NAT are in two vrrp_instances, {first} and {apart}, which may have \
                 different active machines"
            ),
            "put all of them into one vrrp_instance (the other family's into virtual_ipaddress_excluded)",
        ));
    } else {
        findings.push(Finding::ok(
            VRRP,
            format!(
                "one vrrp_instance ({first}) moves {}",
                list(&Vec::from_iter(all))
            ),
        ));
    }
    let instances = vrrp.instances.iter();
    let used: Vec<_> = instances
        .filter(|it| names.contains(it.name.as_str()))
        .collect();
    let file = &config.manager.track_file;
    if let Some(instance) = used.iter().find(|it| !it.track_files.contains(file)) {
        findings.push(Finding::warning(
            VRRP,
            format!(
                "vrrp_instance {} does not track {}: memlb handover would move nothing",
                instance.name,
                file.display()
            ),
            "add track_file to it, as in docs/high-availability.md",
        ));
    }
    if let Some(instance) = used.iter().find(|it| it.has_nopreempt) {
        findings.push(Finding::warning(
            VRRP,
            format!(
                "vrrp_instance {} has nopreempt: its standby ignores the lower priority after memlb handover",
                instance.name
            ),
            "give both machines the same priority, without nopreempt: the active one stays active all the same",
        ));
    }
    findings
}

fn track_file(facts: &PeerFacts<'_>) -> Option<Finding> {
    let path = facts.config.manager.track_file.display();
    match &facts.track_file {
        Err(why) => Some(Finding::problem(
            VRRP,
            why.clone(),
            format!("ls -la {path}    (a running manager writes it at its start)"),
        )),
        Ok(Some(value)) if *value < 0 => Some(Finding::warning(
            VRRP,
            format!(
                "handed over: {path} has {value}, so that keepalived has a lower priority here"
            ),
            "memlb handover --undo    (to give this machine its usual priority again)",
        )),
        Ok(None) if facts.status.is_some() => Some(Finding::warning(
            VRRP,
            format!("the track file {path} is missing: memlb handover may not be able to write it"),
            "read in the manager's log why it could not be written",
        )),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests;
