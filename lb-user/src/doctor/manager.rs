//! Whether exactly one manager runs, and which process receives the heartbeats.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_core::counted;
use tokio::net::UnixStream;

use super::Finding;
use crate::{
    config,
    control::{ControlClient, Request},
    datapath::{ForeignPrograms, foreign_programs},
    processes::{self, MemlbProcess, Unit},
    sockets::{Holder, PortHolder, tcp_holder, udp_holder},
    status::Status,
};

#[derive(Debug, Clone)]
pub struct ManagerFacts {
    pub control_socket: PathBuf,
    pub answer: ControlReply,
    /// The process that answers at the control socket.
    pub pid: Option<i32>,
    pub heartbeat_listen: SocketAddr,
    pub receiver: PortHolder,
    /// The address of the web page, if it is served, and the process that serves it.
    pub http: Option<(SocketAddr, PortHolder)>,
    /// All managers in this network namespace.
    pub managers: Vec<Holder>,
    /// Those in other network namespaces.
    pub elsewhere: Vec<Holder>,
    /// The programs that other managers have attached here.
    pub others: Vec<ForeignPrograms>,
}

/// The reply from the control socket.
#[derive(Debug, Clone)]
pub enum ControlReply {
    Status(Box<Status>),
    /// A process listens there, but its reply is not valid.
    Invalid(String),
    Forbidden,
    NoManager,
}

impl ManagerFacts {
    pub fn status(&self) -> Option<&Status> {
        match &self.answer {
            ControlReply::Status(status) => Some(status),
            _ => None,
        }
    }
}

pub async fn gather(manager: &config::ManagerSettings) -> ManagerFacts {
    let (answer, pid) = request_status(&manager.control_socket).await;
    let (managers, elsewhere): (Vec<_>, Vec<_>) = processes::of_verb("manager")
        .into_iter()
        .partition(|it| it.is_in_this_network);
    let holders = |found: Vec<MemlbProcess>| found.into_iter().map(|it| it.holder).collect();
    let heartbeat_listen = manager.heartbeat_listen;
    ManagerFacts {
        control_socket: manager.control_socket.clone(),
        answer,
        pid,
        heartbeat_listen,
        http: manager.http_listen.map(|it| (it, tcp_holder(it))),
        receiver: udp_holder(heartbeat_listen),
        managers: holders(managers),
        elsewhere: holders(elsewhere),
        others: foreign_programs(&manager.pin_path),
    }
}

async fn request_status(control_socket: &Path) -> (ControlReply, Option<i32>) {
    let stream = match UnixStream::connect(control_socket).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return (ControlReply::Forbidden, None);
        }
        Err(_) => return (ControlReply::NoManager, None),
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    drop(stream);
    let client = ControlClient::new(control_socket.to_owned());
    let answer = match client.request(&Request::Status).await {
        Ok(status) => ControlReply::Status(status),
        Err(error) => ControlReply::Invalid(error.to_string()),
    };
    (answer, pid)
}

pub fn findings(facts: &ManagerFacts) -> Vec<Finding> {
    let rest = [receiving(facts), serving(facts), several(facts)];
    // Checks of this network namespace do not apply to a manager in another one.
    let rest = rest
        .into_iter()
        .filter(|_| answering_elsewhere(facts).is_none());
    let all = [manager(facts)].into_iter().chain(rest).flatten();
    all.chain(other_network(facts)).collect()
}

/// The manager that answers, if it runs in another network namespace.
fn answering_elsewhere(facts: &ManagerFacts) -> Option<&Holder> {
    let mut elsewhere = facts.elsewhere.iter();
    elsewhere.find(|it| facts.pid == Some(it.pid))
}

fn manager(facts: &ManagerFacts) -> Option<Finding> {
    let socket = facts.control_socket.display();
    Some(match &facts.answer {
        ControlReply::Status(status) => Finding::ok(
            "manager",
            format!(
                "memlb {} runs{}, up {}",
                status.version,
                facts
                    .pid
                    .map_or(String::new(), |pid| format!(" (process {pid})")),
                humantime::format_duration(std::time::Duration::from_secs(status.uptime_ms / 1000))
            ),
        ),
        ControlReply::Invalid(why) => Finding::problem(
            "manager",
            format!("the process at {socket} does not answer like this memlb: {why}"),
            format!("memlb --version; {}", Unit::Manager.restart(RESTART)),
        ),
        ControlReply::Forbidden => Finding::problem(
            "manager",
            format!("this user may not connect to {socket}"),
            "sudo memlb doctor",
        ),
        ControlReply::NoManager => match facts.managers.first() {
            Some(other) => Finding::problem(
                "manager",
                format!("{other} is a manager, but not with the control socket {socket}"),
                format!(
                    "give doctor the same --config as that one (tr '\\0' ' ' < /proc/{}/cmdline)",
                    other.pid
                ),
            ),
            None => Finding::warning(
                "manager",
                format!("none runs (no answer at {socket})"),
                Unit::Manager.start("memlb manager"),
            ),
        },
    })
}

/// A port at which the manager receives.
struct ListeningPort<'a> {
    check: &'static str,
    /// Protocol and address.
    at: String,
    receiver: &'a PortHolder,
    /// The verb for a process at the port.
    verb: &'static str,
    /// What the manager does at the port.
    own: String,
    /// The finding if no process receives there although a manager runs.
    unused: Finding,
    /// What another program at the port prevents.
    prevented: &'static str,
    /// The options that choose another port.
    another: &'static str,
    /// The command that lists what is at the port.
    list: String,
}

fn receiving(facts: &ManagerFacts) -> Option<Finding> {
    let listen = facts.heartbeat_listen;
    let unused =
        format!("the manager does not receive at UDP {listen}, where this configuration has it");
    Some(at_port(
        facts,
        ListeningPort {
            check: "heartbeats",
            at: format!("UDP {listen}"),
            receiver: &facts.receiver,
            verb: "receives",
            own: format!("receives at UDP {listen}"),
            unused: Finding::problem("heartbeats", unused, restart_for_file()),
            prevented: "heartbeats do not reach the manager",
            another: "--heartbeat-listen 0.0.0.0:PORT, and the same for the agents",
            list: format!("sudo ss -lunp 'sport = :{}'", listen.port()),
        },
    ))
}

/// Without its port for the web page, no manager starts.
fn serving(facts: &ManagerFacts) -> Option<Finding> {
    let (listen, receiver) = facts.http.as_ref()?;
    let unused = format!(
        "the manager does not serve its page at TCP {listen}, where this configuration has it"
    );
    Some(at_port(
        facts,
        ListeningPort {
            check: "http",
            at: format!("TCP {listen}"),
            receiver,
            verb: "serves",
            own: format!("serves http://{listen}/"),
            unused: Finding::warning("http", unused, restart_for_file()),
            prevented: "no manager starts with this http_listen",
            another: "--http-listen 127.0.0.1:PORT, or none: --http-listen \"\"",
            list: format!("sudo ss -ltnp 'sport = :{}'", listen.port()),
        },
    ))
}

fn at_port(facts: &ManagerFacts, port: ListeningPort<'_>) -> Finding {
    let ListeningPort {
        check, at, verb, ..
    } = &port;
    let is_running = matches!(facts.answer, ControlReply::Status(..));
    match port.receiver {
        PortHolder::Free if is_running => port.unused,
        PortHolder::Free => Finding::ok(check, format!("{at} is free for a manager")),
        PortHolder::Known(holder) if facts.pid == Some(holder.pid) => {
            Finding::ok(check, format!("the manager {}", port.own))
        }
        // The remedy ends no running manager: the operator decides which of the two should serve.
        PortHolder::Known(holder) if facts.managers.contains(holder) => Finding::problem(
            check,
            format!("{at} belongs to {holder}, a second manager"),
            format!("choose another: {}", port.another),
        ),
        PortHolder::Known(holder) => Finding::problem(
            check,
            format!("{at} belongs to {holder}: {}", port.prevented),
            format!(
                "kill {}    (or choose another: {})",
                holder.pid, port.another
            ),
        ),
        PortHolder::Unknown if is_running && facts.pid.is_none() => {
            Finding::ok(check, format!("a process {verb} at {at}"))
        }
        PortHolder::Unknown if matches!(facts.answer, ControlReply::Forbidden) => Finding::warning(
            check,
            format!("this user may not see which process {verb} at {at}"),
            "sudo memlb doctor",
        ),
        PortHolder::Unknown => Finding::problem(
            check,
            format!("{at} belongs to another user's program"),
            port.list,
        ),
    }
}

/// How an operator restarts a manager that systemd does not run.
const RESTART: &str = "end the manager, and start it again";

fn restart_for_file() -> String {
    let restart = Unit::Manager.restart(RESTART);
    format!("{restart}    (the file was changed after its start)")
}

/// Reports a manager in another network namespace, and how to examine it there.
fn other_network(facts: &ManagerFacts) -> Option<Finding> {
    let there =
        |holder: &Holder| format!("nsenter --target {} --net --mount memlb doctor", holder.pid);
    if let Some(holder) = answering_elsewhere(facts) {
        return Some(Finding::problem(
            "manager",
            format!(
                "{} runs in another network namespace: interfaces, routes, ports and firewall examined here are \
                 not its own",
                holder.with_age()
            ),
            there(holder),
        ));
    }
    let is_absent = matches!(facts.answer, ControlReply::NoManager) && facts.managers.is_empty();
    let holder = facts.elsewhere.first().filter(|_| is_absent)?;
    Some(Finding::warning(
        "manager",
        format!("{} runs in another network namespace", holder.with_age()),
        there(holder),
    ))
}

/// Reports several managers, which would steer the same packets twice: which started first, and what each serves. The
/// operator decides which one stays.
fn several(facts: &ManagerFacts) -> Option<Finding> {
    let answers = |it: &Holder| Some(it.pid) == facts.pid;
    let unseen = match facts.answer {
        ControlReply::NoManager => false,
        _ => !facts.managers.iter().any(answers),
    };
    // A manager that answers counts even if this user may not see its process.
    if facts.managers.len() + usize::from(unseen) < 2 {
        return None;
    }
    let mut managers: Vec<&Holder> = facts.managers.iter().collect();
    managers.sort_by_key(|it| std::cmp::Reverse(it.age()));
    let named: Vec<String> = managers
        .iter()
        .map(|it| format!("{} ({})", it.with_age(), serving_of(facts, it)))
        .collect();
    Some(Finding::problem(
        "manager",
        format!(
            "{} run here, the oldest first: {}; packets that both receive are steered twice",
            counted(managers.len(), "manager"),
            named.join(", and "),
        ),
        "decide which one should serve; stop the other one, and memlb unload --pin-path ITS_PINS",
    ))
}

/// Names the services of a manager that answers or whose pins can be read.
fn serving_of(facts: &ManagerFacts, manager: &Holder) -> String {
    let own = facts.status().filter(|_| facts.pid == Some(manager.pid));
    let own = own.map(|status| status.services.iter());
    let mut others = facts.others.iter();
    let other = others.find(|it| it.holder.as_ref() == Some(manager));
    let services = match (own, other) {
        (Some(services), _) => {
            let services = services.map(|it| format!("{} {}", it.name, it.address));
            let services: Vec<String> = services.collect();
            (!services.is_empty()).then(|| services.join(", "))
        }
        (None, Some(other)) => other.service_list(),
        (None, None) => return "its pins are not visible here".to_owned(),
    };
    match services {
        Some(services) => format!("serves {services}"),
        None => "serves nothing that can be read".to_owned(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{doctor::Severity, status::Heartbeats};

    fn memlb(pid: i32) -> Holder {
        Holder {
            pid,
            program: "memlb".to_owned(),
        }
    }

    pub fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            uptime_ms: 90_000,
            config_file: None,
            interfaces: Vec::new(),
            kernel_selections: Vec::new(),
            services: Vec::new(),
            heartbeats: Heartbeats::default(),
            denied_prefixes: 0,
            sources: Vec::new(),
            peers: Vec::new(),
            handed_over: None,
            verdicts: Default::default(),
            refusals: Default::default(),
            maps: Default::default(),
            counters_problem: None,
        }
    }

    fn running(receiver: PortHolder, managers: &[i32]) -> ManagerFacts {
        ManagerFacts {
            control_socket: "/run/memlb/manager.sock".into(),
            answer: ControlReply::Status(Box::new(status())),
            pid: Some(7),
            heartbeat_listen: ([0, 0, 0, 0], 9999).into(),
            receiver,
            http: None,
            managers: managers.iter().map(|pid| memlb(*pid)).collect(),
            elsewhere: Vec::new(),
            others: Vec::new(),
        }
    }

    fn absent(receiver: PortHolder, managers: &[i32]) -> ManagerFacts {
        ManagerFacts {
            answer: ControlReply::NoManager,
            pid: None,
            ..running(receiver, managers)
        }
    }

    fn problems(facts: &ManagerFacts) -> Vec<Finding> {
        let mut findings = findings(facts);
        findings.retain(|it| it.severity == Severity::Problem);
        findings
    }

    #[test]
    fn one_receiving_manager_is_ok() {
        assert_eq!(problems(&running(PortHolder::Known(memlb(7)), &[7])), []);
        assert_eq!(problems(&absent(PortHolder::Free, &[])), []);
    }

    #[test]
    fn names_the_process_that_has_the_port() {
        let python = Holder {
            pid: 99,
            program: "python3".to_owned(),
        };
        let found = problems(&absent(PortHolder::Known(python), &[]));
        found[0].assert(
            Severity::Problem,
            "belongs to python3 (process 99)",
            "kill 99 ",
        );
        let idle = problems(&running(PortHolder::Free, &[7]));
        assert!(idle[0].found.contains("does not receive"));
    }

    #[test]
    fn names_the_process_that_has_the_port_of_the_page() {
        let at = |receiver| Some((([127, 0, 0, 1], 9998).into(), receiver));
        let nginx = Holder {
            pid: 99,
            program: "nginx".to_owned(),
        };
        let taken = ManagerFacts {
            http: at(PortHolder::Known(nginx)),
            ..absent(PortHolder::Free, &[])
        };
        let found = problems(&taken);
        let says = "TCP 127.0.0.1:9998 belongs to nginx (process 99)";
        found[0].assert(Severity::Problem, says, "kill 99 ");
        found[0].assert(Severity::Problem, says, "--http-listen");
        let own = ManagerFacts {
            http: at(PortHolder::Known(memlb(7))),
            ..running(PortHolder::Known(memlb(7)), &[7])
        };
        assert_eq!(problems(&own), []);
        let free = ManagerFacts {
            http: at(PortHolder::Free),
            ..absent(PortHolder::Free, &[])
        };
        assert_eq!(problems(&free), []);
    }

    #[test]
    fn reports_where_a_manager_in_another_network_is_examined() {
        let elsewhere = |facts: ManagerFacts| ManagerFacts {
            elsewhere: vec![memlb(7)],
            ..facts
        };
        let found = problems(&elsewhere(running(PortHolder::Free, &[])));
        assert_eq!(found.len(), 1, "{found:?}");
        let says = "in another network namespace";
        let remedy = "nsenter --target 7 --net --mount memlb doctor";
        found[0].assert(Severity::Problem, says, remedy);
        let stranger = PortHolder::Known(Holder {
            pid: 99,
            program: "python3".to_owned(),
        });
        let taken = problems(&elsewhere(absent(stranger, &[])));
        assert!(taken[0].found.contains("belongs to python3"), "{taken:?}");
        let absent = findings(&elsewhere(absent(PortHolder::Free, &[])));
        assert!(absent.iter().any(|it| it.found.contains("is free")));
        (absent.last().unwrap()).assert(Severity::Warning, says, remedy);
    }

    #[test]
    fn reports_two_managers() {
        let found = problems(&running(PortHolder::Known(memlb(7)), &[7, 8]));
        assert_eq!(found.len(), 1);
        let text = &found[0].found;
        assert!(
            text.contains("2 managers run here, the oldest first: "),
            "{text}"
        );
        assert!(text.contains("memlb (process 7)"), "{text}");
        assert!(text.contains("memlb (process 8)"), "{text}");
        assert!(text.contains("serves nothing that can be read"), "{text}");
        let remedy = found[0].remedy.as_ref().unwrap();
        assert!(!remedy.contains("kill"), "{remedy}");
        let found = problems(&absent(PortHolder::Known(memlb(7)), &[7]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].found.contains("not with the control socket"));
        assert!(found[1].found.contains("a second manager"));
    }
}
