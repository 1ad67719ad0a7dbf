//! A worker, the hosts between which it moves, and the balancer between it and its clients.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{
    Cluster, ClusterOptions, Namespace, Process, Shape, Topology,
    balancers::forward,
    command::output,
    migration::{Application, add_host, arrive, depart},
    namespace::unique_prefix,
};
use serde::Serialize;
use tempfile::TempDir;

use super::{
    clients::Targets,
    quantities::Usage,
    scenario::{Between, PORT, Silence},
};
use crate::processor::{Timing, of_group, of_thread, resident};

const PATIENCE: Duration = Duration::from_secs(10);

/// The hosts' figures of the move.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MoveStats {
    /// Duration of the worker's stop.
    pub still_ms: f64,
    /// Bytes from host to host.
    pub bytes: u64,
}

/// A worker that can move while clients use it.
pub trait Testbed {
    fn client(&self) -> &Namespace;
    fn targets(&self) -> Targets;
    fn usage(&self, timing: &Timing) -> Result<Usage>;
    /// Moves the worker, which is stopped for the duration of `silence`.
    fn migrate(&mut self, silence: Silence) -> Result<MoveStats>;
}

/// A process that moves with its connections by TCP_REPAIR.
#[derive(Debug)]
pub struct ProcessTestbed {
    // In the order of their end.
    application: Option<Application>,
    _other: Application,
    network: Network,
    between: Between,
    /// Processor time of the worker on its first host.
    used_before: Duration,
}

/// The network with its balancer.
#[derive(Debug)]
pub enum Network {
    Memlb(Box<Cluster>),
    Other(Box<BalancerBetween>),
}

#[derive(Debug)]
pub struct BalancerBetween {
    // In the order of their end.
    balancer: Option<Process>,
    topology: Topology,
    _files: TempDir,
}

impl ProcessTestbed {
    pub fn build(between: Between) -> Result<Self> {
        let mut network = Network::build(between, true)?;
        let prefix = network.prefix()?;
        let topology = network.topology_mut();
        let start = |index: usize| Application::start(&topology.workers[index], PORT);
        let (application, other) = (start(0)?, start(1)?);
        add_host(topology, &prefix)?;
        if between == Between::MemlbXdp {
            topology.prepare_for_xdp()?;
        }
        Ok(Self {
            application: Some(application),
            _other: other,
            network,
            between,
            used_before: Duration::ZERO,
        })
    }

    fn worker_time(&self) -> Result<Duration> {
        let Some(application) = &self.application else {
            return Ok(self.used_before);
        };
        Ok(self.used_before + of_thread(application.directory())?)
    }
}

impl Testbed for ProcessTestbed {
    fn client(&self) -> &Namespace {
        &self.network.topology().client
    }

    fn targets(&self) -> Targets {
        self.network.targets(self.between)
    }

    fn usage(&self, timing: &Timing) -> Result<Usage> {
        let worker_time = self.worker_time()?;
        self.network.usage(timing, worker_time, None)
    }

    fn migrate(&mut self, silence: Silence) -> Result<MoveStats> {
        self.network.announce(silence)?;
        self.used_before = self.worker_time()?;
        if let Network::Memlb(cluster) = &mut self.network {
            cluster.kill_agent(0)?;
        }
        let application = self.application.take().context("the worker serves")?;
        let departed = depart(self.network.topology_mut(), application)?;
        if let Network::Memlb(cluster) = &mut self.network {
            cluster.start_agent(0)?;
            if self.between == Between::MemlbDsr {
                // A socket that is there before the DSR translator is attached answers from its own address.
                let agent = cluster.agents[0].as_mut().context("the agent runs")?;
                agent.wait_for_log(PATIENCE, "the DSR translator is attached")?;
            }
        }
        let (application, moved) = arrive(self.network.topology(), departed, silence.duration())?;
        self.application = Some(application);
        self.network.announce_address()?;
        self.network.announce_end(silence)?;
        Ok(MoveStats {
            still_ms: moved.pause.as_secs_f64() * 1e3,
            bytes: moved.bytes as u64,
        })
    }
}

impl Network {
    /// Sets up the network with two workers without servers, and with their agents if `agents`.
    pub fn build(between: Between, agents: bool) -> Result<Self> {
        let Some((attach, direct)) = between.memlb() else {
            return Ok(Self::Other(Box::new(BalancerBetween::build(between)?)));
        };
        let translations = between.translations().into_iter();
        let cluster = Cluster::start(&ClusterOptions {
            attach: attach.into(),
            direct,
            ports: vec![PORT],
            datagram_ports: vec![PORT],
            agents,
            agent_arguments: translations.flat_map(|it| ["--dsr".into(), it]).collect(),
            ..ClusterOptions::default()
        })?;
        if agents {
            cluster.wait_for_selection("worker1", PATIENCE)?;
        }
        cluster.topology.disable_bridge_netfilter()?;
        Ok(Self::Memlb(Box::new(cluster)))
    }

    pub fn topology(&self) -> &Topology {
        match self {
            Self::Memlb(cluster) => &cluster.topology,
            Self::Other(other) => &other.topology,
        }
    }

    pub fn topology_mut(&mut self) -> &mut Topology {
        match self {
            Self::Memlb(cluster) => &mut cluster.topology,
            Self::Other(other) => &mut other.topology,
        }
    }

    pub fn prefix(&self) -> Result<String> {
        let client = self.topology().client.name();
        let prefix = client
            .strip_suffix("client")
            .context("a name of the client")?;
        Ok(prefix.to_owned())
    }

    pub fn targets(&self, between: Between) -> Targets {
        let topology = self.topology();
        let at = match between {
            Between::Nothing => topology.workers[0].address(),
            _ => topology.manager.address(),
        };
        let at = SocketAddr::from((at, PORT));
        let datagrams = (between != Between::Haproxy).then_some(at);
        Targets {
            connections: at,
            datagrams,
        }
    }

    /// Returns the usage of balancer and worker. The worker's is given.
    pub fn usage(
        &self,
        timing: &Timing,
        worker_time: Duration,
        worker_bytes: Option<u64>,
    ) -> Result<Usage> {
        let (balancer, programs) = match self {
            Self::Memlb(cluster) => (cluster.manager.as_ref(), timing.of_managers()?),
            Self::Other(other) => (other.balancer.as_ref(), Duration::ZERO),
        };
        let pid = balancer.map(Process::pid);
        Ok(Usage {
            balancer_time: pid.map(of_group).transpose()?.map(|it| it + programs),
            balancer_bytes: pid.map(resident).transpose()?,
            worker_time,
            worker_bytes,
        })
    }

    /// Pauses the worker by `memlb pause`, if the silence is announced.
    pub fn announce(&self, silence: Silence) -> Result<()> {
        let orders = [
            "worker1",
            "--for",
            "1m",
            "--reason",
            "moves to another host",
        ];
        self.admin("pause", &orders, silence)
    }

    pub fn announce_end(&self, silence: Silence) -> Result<()> {
        self.admin("resume", &["worker1"], silence)
    }

    fn admin(&self, verb: &str, arguments: &[&str], silence: Silence) -> Result<()> {
        match self {
            Self::Memlb(cluster) if silence == Silence::Announced => {
                output(cluster.memlb(verb).args(arguments)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Announces the worker's address to the network, as a hypervisor does. memlb needs no announcement.
    fn announce_address(&self) -> Result<()> {
        let Self::Other(other) = self else {
            return Ok(());
        };
        let worker = other
            .topology
            .workers
            .first()
            .context("there is a worker")?;
        let client = SocketAddr::from((other.topology.client.address(), 9));
        // Its ARP request is a broadcast.
        worker.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"here", client))??;
        Ok(())
    }
}

impl BalancerBetween {
    fn build(between: Between) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("memlb-bench-").tempdir();
        let files = files.context("make a directory for the balancer")?;
        let topology = Topology::create_as(&unique_prefix(), Shape::OneArm, 2)?;
        topology.disable_bridge_netfilter()?;
        let balancer = match between {
            Between::Haproxy => Some(haproxy(&topology, files.path())?),
            Between::Nftables => {
                translate(&topology, files.path())?;
                None
            }
            _ => None,
        };
        Ok(Self {
            balancer,
            topology,
            _files: files,
        })
    }
}

/// HAProxy with a health check that takes as long as memlb's `failover.down_after`, and connections that outlive it.
fn haproxy(topology: &Topology, directory: &Path) -> Result<Process> {
    let [worker, other] = [0, 1].map(|index: usize| topology.workers[index].address());
    let file = directory.join("haproxy.cfg");
    let configuration = format!(
        "defaults
    mode tcp
    timeout connect 1s
    retries 3
    option redispatch 1
    timeout client 60s
    timeout server 60s
frontend service
    bind {}:{PORT}
    default_backend workers
backend workers
    default-server check inter 500ms fall 3 rise 2
    server worker1 {worker}:{PORT}
    server worker2 {other}:{PORT} backup
",
        topology.manager.address()
    );
    fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
    let mut command = topology.manager.command("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    Process::start("haproxy", &mut command, &directory.join("haproxy.log"))
}

/// DNAT and masquerade of TCP and UDP, without health checks.
fn translate(topology: &Topology, directory: &Path) -> Result<()> {
    forward(topology)?;
    let (service, worker) = (topology.manager.address(), topology.workers[0].address());
    let ports = format!("meta l4proto {{ tcp, udp }} th dport {PORT}");
    let rules = format!(
        "table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {service} {ports} dnat to {worker}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip daddr {worker} {ports} masquerade
    }}
}}
"
    );
    let file = directory.join("nat.nft");
    fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
    output(topology.manager.command("nft").arg("--file").arg(&file)).context("load the rules")?;
    Ok(())
}

/// Waits until the service answers a client.
pub fn wait_until_served(testbed: &dyn Testbed, patience: Duration) -> Result<()> {
    let target = testbed.targets().connections;
    let deadline = Instant::now() + patience;
    testbed.client().enter(|| {
        loop {
            match super::clients::request_once(target) {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                answer => return answer.with_context(|| format!("get an answer from {target}")),
            }
        }
    })?
}
