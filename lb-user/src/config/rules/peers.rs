//! Relations of the peers' settings.

use lb_core::Mode;

use crate::config::Config;
use crate::config::error::ProblemKind;
use crate::config::section::PEER;
use crate::config::validator::Validator;

/// The maximum number of peers: a manager sends each of its connections to all of them.
const MAX_PEERS: usize = 7;

pub(super) fn check(validator: &mut Validator<'_>, config: &Config) {
    if config.peers.is_empty() {
        return;
    }
    listen(validator, config);
    distinct_peers(validator, config);
    nat_sources(validator, config);
    for (number, peer) in config.peers.iter().enumerate() {
        let name = format!("{PEER}.{number}.name");
        if config.manager.name.as_ref() == Some(&peer.name) && validator.are_valid(&[&name]) {
            validator.reject(
                &name,
                ProblemKind::PeerIsThisManager,
                format!("{:?} is this manager's own name (manager.name)", peer.name),
                "the name of another manager",
                "name each manager differently, in manager.name of its own file and in [[peer]] of the others",
            );
        }
        let address = format!("{PEER}.{number}.address");
        if config.manager.peer_listen == Some(peer.address) && validator.are_valid(&[&address]) {
            validator.reject(
                &address,
                ProblemKind::PeerIsThisManager,
                format!("{} is this manager's own peer_listen", peer.address),
                "the peer_listen of another manager",
                "write the peer's address here, and this machine's in manager.peer_listen",
            );
        }
    }
}

fn listen(validator: &mut Validator<'_>, config: &Config) {
    let key = "manager.peer_listen";
    if config.manager.peer_listen.is_none() && validator.are_valid(&[key]) {
        validator.reject(
            key,
            ProblemKind::PeerWithoutListen,
            "a peer is configured, but no address at which it can reach this manager",
            "this machine's address on the link to the peers, as in \"10.0.9.1:9997\"",
            "add peer_listen to [manager]; the peers' files have it as this manager's address",
        );
    }
    let Some(listen) = config.manager.peer_listen else {
        return;
    };
    let mut services = config.services.iter().map(|it| it.address.ip());
    let moves =
        services.any(|it| it == listen.ip()) || config.manager.nat_sources.contains(&listen.ip());
    if moves && validator.are_valid(&[key]) {
        validator.reject(
            key,
            ProblemKind::PeerListenMoves,
            format!("{} moves to the peer when the peer takes over", listen.ip()),
            "an address that this machine always has, as in \"10.0.9.1:9997\"",
            "write this machine's own address on the link to the peers",
        );
    }
}

fn distinct_peers(validator: &mut Validator<'_>, config: &Config) {
    let (peers, kind, owner) = (&config.peers, ProblemKind::DuplicatePeer, "a peer");
    validator.reject_duplicates((PEER, "name"), peers, |it| it.name.clone(), kind, owner);
    validator.reject_duplicates(
        (PEER, "address"),
        peers,
        |it| it.address.to_string(),
        kind,
        owner,
    );
    let count = peers.len();
    if count > MAX_PEERS {
        validator.reject(
            &format!("{PEER}.{MAX_PEERS}"),
            ProblemKind::TooManyPeers,
            format!("{count} peers are configured"),
            format!("at most {MAX_PEERS}"),
            "remove some; every manager sends each of its connections to all of them",
        );
    }
}

/// In mode "nat", a peer can continue connections only if their source address moves to it.
fn nat_sources(validator: &mut Validator<'_>, config: &Config) {
    let key = "manager.nat_sources";
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let mut services = config.services.iter().enumerate();
        let in_nat = services.find(|(number, it)| {
            let path = format!("service.{number}.address");
            it.mode == Mode::Nat
                && it.address.is_ipv4() == is_v4
                && !it.address.ip().is_unspecified()
                && validator.are_valid(&[&path])
        });
        let mut sources = config.manager.nat_sources.iter();
        let Some((_, service)) = in_nat.filter(|_| !sources.any(|it| it.is_ipv4() == is_v4)) else {
            continue;
        };
        if !validator.are_valid(&[key]) {
            return;
        }
        validator.reject(
            key,
            ProblemKind::PeersWithoutNatSources,
            format!(
                "service {} has mode \"nat\" and there is a peer, but no {family} address here moves to the peer",
                service.name
            ),
            format!(
                "one {family} address or more of this manager's own, which keepalived moves together with the \
                 service's"
            ),
            "add such an address to nat_sources (and to virtual_ipaddress of the one vrrp_instance): replies to the \
             machine's fixed address would be lost with it",
        );
    }
}
