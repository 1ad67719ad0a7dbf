//! A worker's own server: whether it answers, and listens at the address to which the manager sends connections.

use std::net::{IpAddr, SocketAddr};

use super::{
    Finding,
    host::Host,
    probe::{self, Attempt},
    services::list,
};
use crate::{agent::HealthCheck, sockets};

#[derive(Debug, Clone)]
pub struct ServerFacts {
    pub target: String,
    /// Why the check failed, if it did.
    pub failure: Option<String>,
    pub port: u16,
    /// The addresses at which a server listens on that port.
    pub listeners: Vec<IpAddr>,
    /// This host's address that the manager knows, and the result of a connection to it.
    pub from_outside: Option<(SocketAddr, Attempt)>,
}

pub async fn gather(
    check: Option<&HealthCheck>,
    host: &Host,
    own: Option<IpAddr>,
) -> Option<ServerFacts> {
    let check = check?;
    let port = check.target.port();
    let outside = own.map(|ip| SocketAddr::new(ip, port));
    let mut attempts = probe::connect(outside).await;
    Some(ServerFacts {
        target: check.target.to_string(),
        failure: check.run().await.err().map(|error| format!("{error:#}")),
        port,
        listeners: sockets::listeners(&host.sockets, port),
        from_outside: attempts.pop_first(),
    })
}

pub fn findings(facts: Option<&ServerFacts>) -> Vec<Finding> {
    let Some(facts) = facts else {
        return vec![Finding::warning(
            "server",
            "not checked: no option names this worker's server",
            "memlb doctor --agent … --check http://127.0.0.1:8081/",
        )];
    };
    [Some(answers(facts)), listens(facts)]
        .into_iter()
        .flatten()
        .collect()
}

fn answers(facts: &ServerFacts) -> Finding {
    let ServerFacts { target, port, .. } = facts;
    match &facts.failure {
        None => Finding::ok("server", format!("{target} answers")),
        Some(why) if facts.listeners.is_empty() => Finding::problem(
            "server",
            format!("{target} does not answer ({why}), and no server listens at port {port}"),
            format!("start the server; ss -ltnp 'sport = :{port}' shows when it listens"),
        ),
        Some(why) => Finding::problem(
            "server",
            format!("{target} does not answer: {why}"),
            format!("curl -v {target}"),
        ),
    }
}

fn listens(facts: &ServerFacts) -> Option<Finding> {
    let ServerFacts {
        port,
        listeners,
        from_outside,
        ..
    } = facts;
    let (address, attempt) = from_outside.as_ref()?;
    let only_loopback = sockets::is_only_local(listeners);
    Some(match attempt {
        Attempt::Connected(_) => Finding::ok("server", format!("it listens at {address}, too")),
        _ if only_loopback => Finding::problem(
            "server",
            format!(
                "it listens on {} only: connections that the manager sends to {address} are refused",
                list(listeners)
            ),
            format!(
                "let it listen on 0.0.0.0:{port}; ss -ltnp 'sport = :{port}' shows which program it is"
            ),
        ),
        _ if listeners.is_empty() => return None,
        _ => Finding::problem(
            "server",
            format!("a server listens at port {port}, but {address} does not answer"),
            "nft list ruleset; iptables -S INPUT",
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::doctor::Severity;

    fn facts(listeners: &[Ipv4Addr], failure: Option<&str>, outside: Attempt) -> ServerFacts {
        ServerFacts {
            target: "http://127.0.0.1:8081/".to_owned(),
            failure: failure.map(str::to_owned),
            port: 8081,
            listeners: listeners.iter().map(|ip| IpAddr::V4(*ip)).collect(),
            from_outside: Some((([192, 168, 56, 103], 8081).into(), outside)),
        }
    }

    #[test]
    fn reports_a_server_that_only_this_host_reaches() {
        let connected = Attempt::Connected(Duration::from_millis(1));
        let fine = findings(Some(&facts(&[Ipv4Addr::UNSPECIFIED], None, connected)));
        assert!(
            fine.iter().all(|it| it.severity == Severity::Ok),
            "{fine:?}"
        );

        let own = findings(Some(&facts(&[Ipv4Addr::LOCALHOST], None, Attempt::Refused)));
        assert_eq!(own[0].severity, Severity::Ok);
        own[1].assert(
            Severity::Problem,
            "listens on 127.0.0.1 only",
            "0.0.0.0:8081",
        );

        let dropped = facts(&[Ipv4Addr::UNSPECIFIED], None, Attempt::Silent);
        findings(Some(&dropped))[1].assert(Severity::Problem, "", "nft");
    }

    #[test]
    fn reports_a_server_that_does_not_run() {
        let gone = facts(&[], Some("connect: refused"), Attempt::Refused);
        let gone = findings(Some(&gone));
        assert_eq!(gone.len(), 1);
        gone[0].assert(Severity::Problem, "no server listens at port 8081", "");
        assert_eq!(findings(None)[0].severity, Severity::Warning);
    }
}
