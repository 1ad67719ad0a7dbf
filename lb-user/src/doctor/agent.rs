//! A worker's host: whether every manager answers the agent, and which memory figures the agent can read.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::join_all;
use lb_core::{BootId, Bytes, Sequence};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use tokio::{
    net::{UdpSocket, lookup_host},
    time::timeout,
};

use super::{Finding, keys};
use crate::{
    agent::{self, HealthCheck, memory_now},
    heartbeat::{self, Ping, Pong},
    keys::{AGENT_KEY, Key, is_forbidden, read_key},
    processes::Unit,
    sockets::Holder,
};

/// The settings of a worker's agent.
#[derive(Debug, Clone)]
pub struct ExaminedAgent {
    /// Addresses or names, with a port.
    pub managers: Vec<String>,
    pub name: String,
    pub key: Option<PathBuf>,
    pub check: Option<HealthCheck>,
    pub sources: agent::MemorySources,
    pub origin: AgentOrigin,
}

/// Where the settings of the worker's agent come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentOrigin {
    /// The agent that runs here.
    Process(Holder),
    /// The file with the arguments of the package's service; none runs here.
    File(PathBuf),
    /// Only the options of the command line; none runs here.
    Options,
}

/// A ping or its pong may be lost: the ping is sent so often, this far apart. All together takes longer than the kernel
/// needs to report that a neighbour does not answer.
const PINGS: u32 = 10;
const PING_TIMEOUT: Duration = Duration::from_millis(400);

/// How long the lookup of a manager's name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// One manager as reached from this host.
#[derive(Debug, Clone)]
pub struct ExaminedManager {
    pub name: String,
    pub address: Result<SocketAddr, String>,
    pub reach: Reachability,
    /// This host's address on the route to the manager.
    pub own: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reachability {
    Answers {
        within: Duration,
        knows_key: bool,
        /// False only if the manager says that no service has such a worker. It says so only to some senders.
        knows_worker: bool,
    },
    /// No answer, and no ICMP error.
    Silent,
    /// Its host answers that the port is closed.
    PortClosed,
    /// A router or the kernel reports that it cannot be reached.
    Unreachable(String),
}

/// The agent's key, and how the managers answer to it.
#[derive(Debug, Clone)]
pub struct AgentFacts {
    pub key: Option<Result<String, KeyProblem>>,
    pub managers: Vec<ExaminedManager>,
}

#[derive(Debug, Clone)]
pub struct KeyProblem {
    pub why: String,
    pub remedy: String,
}

pub async fn gather(worker: &ExaminedAgent) -> AgentFacts {
    let read = worker.key.as_ref().map(|path| {
        read_key(path, &worker.name).map_err(|error| KeyProblem {
            remedy: remedy_for(path, &worker.name, &error),
            why: format!("{error:#}"),
        })
    });
    let key = read.as_ref().and_then(|read| read.as_ref().ok());
    let managers = worker.managers.iter();
    let managers = join_all(managers.map(|name| manager(name, worker, key))).await;
    AgentFacts {
        key: read.map(|read| read.map(|key| key.id().to_string())),
        managers,
    }
}

fn remedy_for(path: &Path, name: &str, error: &anyhow::Error) -> String {
    if is_forbidden(error) {
        return "sudo memlb doctor --agent".to_owned();
    }
    match keys::open_to_others(path).is_empty() {
        false => keys::remedy_for(path, error),
        true => format!(
            "memlb keygen --name {name}, and install -D -m 600 {name}.key {} (and on the manager)",
            path.display()
        ),
    }
}

async fn manager(name: &str, worker: &ExaminedAgent, key: Option<&Key>) -> ExaminedManager {
    let address = resolve(name).await;
    let (reach, own) = match &address {
        Ok(address) => match ping(*address, worker, key).await {
            Ok(seen) => seen,
            Err(error) => (Reachability::Unreachable(format!("{error:#}")), None),
        },
        Err(_) => (Reachability::Silent, None),
    };
    ExaminedManager {
        name: name.to_owned(),
        address,
        reach,
        own,
    }
}

async fn resolve(name: &str) -> Result<SocketAddr, String> {
    let found = timeout(LOOKUP_TIMEOUT, lookup_host(name)).await;
    let found = found
        .map_err(|_| "no answer to the lookup of its name".to_owned())?
        .map_err(|error| error.to_string())?;
    address_of_agent(found)
}

/// Returns that of the found addresses to which the agent sends its heartbeats.
fn address_of_agent(found: impl Iterator<Item = SocketAddr>) -> Result<SocketAddr, String> {
    let found: Vec<SocketAddr> = found.collect();
    agent::preferred_address(&found).ok_or("its name has no address".to_owned())
}

/// Sends pings, which a manager answers but does not accept as heartbeats.
async fn ping(
    address: SocketAddr,
    worker: &ExaminedAgent,
    key: Option<&Key>,
) -> Result<(Reachability, Option<IpAddr>)> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Only a connected socket gets ICMP errors, and "host unreachable" only with the option below.
    socket.connect(address).await?;
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
    }
    let own = socket.local_addr().ok().map(|own| own.ip());
    let ping = Ping {
        worker: worker.name.clone(),
        sequence: Sequence {
            boot: BootId(getrandom::u64()?),
            number: 1,
        },
    };
    let datagram = ping.encode(key)?;
    let begun = Instant::now();
    let mut buffer = [0; heartbeat::SIZE_LIMIT];
    for _ in 0..PINGS {
        let received = match socket.send(&datagram).await {
            Ok(_) => timeout(PING_TIMEOUT, socket.recv(&mut buffer)).await,
            Err(error) => Ok(Err(error)),
        };
        match received {
            Ok(Ok(length)) => {
                let pong = Pong::decode(&buffer[..length], key);
                if let Some(pong) = pong.ok().filter(|pong| pong.ping == ping.sequence) {
                    let reach = Reachability::Answers {
                        within: begun.elapsed(),
                        knows_key: pong.is_signed,
                        knows_worker: !pong.is_unknown,
                    };
                    return Ok((reach, own));
                }
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Ok((Reachability::PortClosed, own));
            }
            Ok(Err(error)) => return Ok((Reachability::Unreachable(error.to_string()), own)),
            Err(_) => {}
        }
    }
    Ok((Reachability::Silent, own))
}

/// Returns this host's address towards the first manager.
pub fn own_address(facts: &AgentFacts) -> Option<IpAddr> {
    facts.managers.iter().find_map(|manager| manager.own)
}

pub fn findings(worker: &ExaminedAgent, facts: &AgentFacts) -> Vec<Finding> {
    let mut findings = vec![origin(worker), signature(worker, facts)];
    let managers = facts.managers.iter();
    findings.extend(managers.map(|manager| check_reachability(worker, facts, manager)));
    findings
}

/// Says which agent is examined.
fn origin(worker: &ExaminedAgent) -> Finding {
    let name = &worker.name;
    let start = match worker.managers.first() {
        Some(manager) => format!("memlb agent --manager {manager} --name {name}"),
        None => format!("memlb agent --manager MANAGER --name {name}"),
    };
    match &worker.origin {
        AgentOrigin::Process(holder) => {
            Finding::ok("agent", format!("{} runs as {name}", holder.with_age()))
        }
        AgentOrigin::File(file) => Finding::warning(
            "agent",
            format!(
                "none runs here; examining the arguments in {}",
                file.display()
            ),
            Unit::Agent.start(&start),
        ),
        AgentOrigin::Options => Finding::warning(
            "agent",
            "none runs here; examining the options of this command",
            Unit::Agent.start(&start),
        ),
    }
}

fn signature(worker: &ExaminedAgent, facts: &AgentFacts) -> Finding {
    match &facts.key {
        None => Finding::warning(
            "key",
            "heartbeats are not signed: any host could send them in this worker's name",
            format!(
                "memlb keygen --name {}    (the key goes to {AGENT_KEY}, and to the manager)",
                worker.name
            ),
        ),
        Some(Ok(id)) => Finding::ok("key", format!("key {id} belongs to {}", worker.name)),
        Some(Err(problem)) => Finding::problem("key", problem.why.clone(), problem.remedy.clone()),
    }
}

fn check_reachability(
    worker: &ExaminedAgent,
    facts: &AgentFacts,
    manager: &ExaminedManager,
) -> Finding {
    let name = &manager.name;
    let address = match &manager.address {
        Ok(address) => address,
        Err(why) => {
            let host = name
                .rsplit_once(':')
                .map_or(name.as_str(), |(host, _)| host);
            return Finding::problem(
                "manager",
                format!("{name} is not found: {why}"),
                format!("getent ahosts {host}; or give its address: --manager 192.168.56.101"),
            );
        }
    };
    let (ip, port) = (address.ip(), address.port());
    match (&manager.reach, &facts.key) {
        (
            Reachability::Answers {
                knows_worker: false,
                ..
            },
            _,
        ) => Finding::problem(
            "manager",
            format!(
                "{name} answers, but has no worker named {}: it refuses such heartbeats (unknown_worker)",
                worker.name
            ),
            format!(
                "memlb agent --name NAME, with a NAME that `memlb workers` lists on {ip}; or there: add \
                 {} to /etc/memlb/memlb.toml, and memlb reload",
                worker.name
            ),
        ),
        (
            Reachability::Answers {
                within, knows_key, ..
            },
            key,
        ) => Finding::ok(
            "manager",
            format!(
                "{name} answers in {:.1} ms{}",
                within.as_secs_f64() * 1000.0,
                match (knows_key, key) {
                    (true, _) => ", and knows the key",
                    (false, Some(_)) => ", and does not verify signatures",
                    (false, None) => "",
                }
            ),
        ),
        (Reachability::PortClosed, _) => Finding::problem(
            "manager",
            format!(
                "{ip} is there, but its UDP port {port} is closed: no manager runs, or it listens elsewhere"
            ),
            format!(
                "on {ip}: systemctl start memlb-manager, or memlb manager; ss -lunp 'sport = :{port}'"
            ),
        ),
        (Reachability::Unreachable(why), _) => Finding::problem(
            "manager",
            format!("{name} cannot be reached: {why}"),
            format!("ip route get {ip}; ping -c 3 {ip}    (is the address right?)"),
        ),
        (Reachability::Silent, Some(Ok(id))) => Finding::problem(
            "manager",
            format!(
                "{name} does not answer: datagrams to its UDP port {port} are lost on the way, or it does \
                 not know key {id} of {}",
                worker.name
            ),
            format!(
                "on {ip}: memlb doctor    (names what it refuses; keys there: /etc/memlb/keys); here: ping -c 3 {ip}"
            ),
        ),
        // The ping was not signed, and the manager may accept signed ones only.
        (Reachability::Silent, Some(Err(_))) => Finding::warning(
            "manager",
            format!("{name} does not answer an unsigned ping, and the key cannot be used"),
            "repair the key, then: memlb doctor --agent",
        ),
        (Reachability::Silent, None) => Finding::problem(
            "manager",
            format!(
                "{name} does not answer: datagrams to its UDP port {port} are lost on the way, or it accepts \
                 only signed heartbeats"
            ),
            format!(
                "ping -c 3 {ip}; on {ip}: memlb doctor, nft list ruleset; with a key: --key {AGENT_KEY}"
            ),
        ),
    }
}

/// The memory figures that the agent can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFacts {
    /// The figures of a heartbeat, or why they cannot be read.
    pub memory: Result<String, String>,
    pub has_pressure: bool,
}

pub fn gather_sources(agent: &agent::MemorySources) -> MemoryFacts {
    let pressure = agent.pressure_file.as_deref();
    let pressure = pressure.unwrap_or(Path::new("/proc/pressure/memory"));
    MemoryFacts {
        memory: memory_now(agent.clone())
            .map_err(|error| format!("{error:#}"))
            .map(|memory| {
                let limit = memory
                    .cgroup
                    .map_or("no cgroup limits it".to_owned(), |cgroup| {
                        format!("a cgroup limits it to {}", Bytes(cgroup.limit_bytes))
                    });
                let memory = memory.effective();
                format!("{} available, {limit}", Bytes(memory.available_bytes))
            }),
        has_pressure: fs::read_to_string(pressure).is_ok(),
    }
}

pub fn sources(sources: &MemoryFacts) -> Vec<Finding> {
    let memory = match &sources.memory {
        Ok(figures) => Finding::ok("memory", figures.clone()),
        Err(why) => Finding::problem("memory", why.clone(), "ls -l /proc/meminfo"),
    };
    let pressure = match sources.has_pressure {
        true => Finding::ok("pressure", "the kernel reports memory pressure (PSI)"),
        false => Finding::warning(
            "pressure",
            "the kernel does not report memory pressure (PSI): policy balanced works without it",
            "add psi=1 to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub), update-grub, restart",
        ),
    };
    vec![memory, pressure]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn worker() -> ExaminedAgent {
        ExaminedAgent {
            managers: Vec::new(),
            name: "worker1".to_owned(),
            key: None,
            check: None,
            sources: agent::MemorySources::default(),
            origin: AgentOrigin::Process(Holder {
                pid: 7,
                program: "memlb".to_owned(),
            }),
        }
    }

    fn examine(reach: Reachability, key: Option<&str>) -> Vec<Finding> {
        let manager = ExaminedManager {
            name: "192.168.56.101:9999".to_owned(),
            address: Ok(([192, 168, 56, 101], 9999).into()),
            reach,
            own: None,
        };
        let facts = AgentFacts {
            key: key.map(|id| Ok(id.to_owned())),
            managers: vec![manager],
        };
        findings(&worker(), &facts)
    }

    #[test]
    fn examines_the_address_to_which_the_agent_sends() {
        let [v4, v6] = ["192.0.2.1:9999", "[2001:db8::1]:9999"].map(|it| it.parse().unwrap());
        assert_eq!(address_of_agent([v6, v4].into_iter()), Ok(v4));
        assert_eq!(address_of_agent([v6].into_iter()), Ok(v6));
        assert!(address_of_agent([].into_iter()).is_err());
    }

    #[test]
    fn reports_why_a_manager_is_not_reached() {
        let answers = Reachability::Answers {
            within: Duration::from_millis(1),
            knows_key: true,
            knows_worker: true,
        };
        let fine = examine(answers, Some("000000a1"));
        assert!(
            fine.iter().all(|it| it.severity == Severity::Ok),
            "{fine:?}"
        );
        let stranger = Reachability::Answers {
            within: Duration::from_millis(1),
            knows_key: false,
            knows_worker: false,
        };
        let problem = |reach, key, says: &str, remedy: &str| {
            examine(reach, key)[2].assert(Severity::Problem, says, remedy);
        };
        let says = "answers, but has no worker named worker1";
        problem(stranger, None, says, "memlb agent --name NAME");
        let closed = Reachability::PortClosed;
        problem(closed, None, "is closed", "systemctl start memlb-manager");
        let unreachable = Reachability::Unreachable("No route to host".to_owned());
        let says = "cannot be reached: No route to host";
        problem(unreachable, None, says, "ip route get 192.168.56.101");
        let (silent, says) = (
            Reachability::Silent,
            "does not know key 000000a1 of worker1",
        );
        problem(silent.clone(), Some("000000a1"), says, "memlb doctor");
        problem(silent, None, "only signed heartbeats", "--key");
    }

    #[test]
    fn reports_a_name_that_means_nothing_and_a_kernel_without_pressure() {
        let facts = AgentFacts {
            key: None,
            managers: vec![ExaminedManager {
                name: "manger.example:9999".to_owned(),
                address: Err("no such name".to_owned()),
                reach: Reachability::Silent,
                own: None,
            }],
        };
        let remedy = "getent ahosts manger.example;";
        findings(&worker(), &facts)[2].assert(Severity::Problem, "", remedy);
        let found = sources(&MemoryFacts {
            memory: Ok(String::new()),
            has_pressure: false,
        });
        assert_eq!(found[1].severity, Severity::Warning);
    }
}
