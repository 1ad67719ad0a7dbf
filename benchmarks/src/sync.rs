//! Compares memlb's peers with IPVS's sync daemon: the connections that a crash loses, and the lag, in an emulated
//! machine whose kernel has IPVS. This program measures there.

use std::{
    env, fmt, fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::{
    balancers::balance_by_ipvs,
    command::output,
    load::{ANSWER_BYTES, Server, percentile, raise_open_files},
    namespace::unique_prefix,
    pair::{
        LOAD_PORT, Pair, PairNetwork, PairOptions, SERVICE_ADDRESS, Side, nat_source,
        worker_address,
    },
    wait::wait_until,
};
use serde::Serialize;
use serde_json::Value;

use super::{
    emulated::{self, REPORT},
    pair::{Crash, Lag},
    table::Table,
};
use xtask::{kernels::Load, packages::Tool, tools};

pub const TOOLS: &[Tool] = tools! {
    "ipvsadm" "ipvsadm" "sets IPVS up in the emulated machine";
    "busybox" "busybox-static" "announces addresses by ARP";
    "sysctl" "procps" "makes machines forward packets";
};

const MODULES: &[&str] = &["ip_vs", "ip_vs_rr"];
const PROGRAMS: &[&str] = &["ipvsadm", "sysctl"];
const TASK: &str = "sync";
/// Far more than it takes.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// Connections a second, each of which lives for three seconds.
const RATES: [u32; 2] = [100, 500];
const WORKERS: usize = 2;
/// The workers' gateway in IPVS's NAT. It moves with the service address.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 57, 100);
/// Connections by which the lag of IPVS is measured, and what asks their worker for an answer.
const PROBES: usize = 50;
const ASK: &[u8] = b"w";
const IPVS_CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";
/// How long a connection may take to be answered, and to be known to the backup.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The verifier takes long in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The connections that a crash loses.
#[derive(Debug, Serialize)]
pub struct Compared(Vec<SyncRow>);

#[derive(Debug, Serialize)]
struct SyncRow {
    who: &'static str,
    per_second: u32,
    crash: Crash,
}

/// Boots the machine and compares there. Returns the table and the report.
///
/// # Errors
/// The machine cannot be made, or the comparison failed there.
pub fn compare(memlb: &Path) -> Result<(String, Value)> {
    let here = env::current_exe().context("find this program")?;
    let load = Load {
        modules: MODULES,
        programs: PROGRAMS,
        ..Load::of_task(memlb, TASK, &here, &format!("sync {REPORT}"))
    };
    emulated::run(TASK, &load, DEADLINE)
}

/// Measures memlb and IPVS in turn, in the machine.
///
/// # Errors
/// The setup of one of them or a client failed.
pub fn measure() -> Result<Compared> {
    raise_open_files()?;
    let mut rows = Vec::new();
    for per_second in RATES {
        for (who, measure) in [
            ("memlb", of_memlb as fn(u32) -> Result<Crash>),
            ("IPVS, sync daemon", of_ipvs),
        ] {
            let crash = measure(per_second).with_context(|| format!("measure {who}"))?;
            rows.push(SyncRow {
                who,
                per_second,
                crash,
            });
        }
    }
    Ok(Compared(rows))
}

fn of_memlb(per_second: u32) -> Result<Crash> {
    let pair = Pair::start(&PairOptions {
        peers: true,
        keepalived: false,
        patience: PATIENCE,
        ..PairOptions::default()
    })?;
    let sources = [nat_source(0), nat_source(1)];
    pair.network.take_over(0, &sources)?;
    pair.wait_until_complete(PATIENCE)?;
    let moves = || pair.network.take_over(1, &sources);
    Crash::of(&pair.network, per_second, true, || Lag::of(&pair), moves)
}

/// IPVS with its default settings.
fn of_ipvs(per_second: u32) -> Result<Crash> {
    let network = PairNetwork::create(&unique_prefix(), 2, WORKERS)?;
    let mut servers = Vec::new();
    for worker in &network.workers {
        servers.push(Server::start(worker, LOAD_PORT)?);
        let by = GATEWAY.to_string();
        output(worker.ip().args(["route", "add", "default", "via", &by]))?;
    }
    for (index, role) in ["master", "backup"].into_iter().enumerate() {
        balance(&network, index, role)?;
    }
    network.take_over(0, &[GATEWAY])?;
    let lag = || lag_of_ipvs(&network).map(Some);
    let moves = || network.take_over(1, &[GATEWAY]);
    Crash::of(&network, per_second, true, lag, moves)
}

/// Measures how long the backup does not know connections, which are opened one after the other beside those of other
/// clients.
fn lag_of_ipvs(network: &PairNetwork) -> Result<Lag> {
    let [client, backup] = [&network.client, &network.managers[1]];
    let mut lags = Vec::new();
    for _ in 0..PROBES {
        let (stream, established) = client
            .enter(connect_and_ask)?
            .context("open a connection")?;
        let port = stream.local_addr()?.port();
        backup.enter(|| wait_until_ipvs_knows(port))??;
        lags.push(u32::try_from(established.elapsed().as_micros())?);
    }
    let milliseconds = |share| percentile(&lags, share).map_or(0.0, |us| f64::from(us) / 1e3);
    Ok(Lag {
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
    })
}

/// Opens a connection; returns it when it is answered, and when it was established.
fn connect_and_ask() -> io::Result<(TcpStream, Instant)> {
    let service = SocketAddr::from(SocketAddrV4::new(SERVICE_ADDRESS, LOAD_PORT));
    let mut stream = TcpStream::connect_timeout(&service, PROBE_TIMEOUT)?;
    let established = Instant::now();
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(ASK)?;
    stream.read_exact(&mut [0; ANSWER_BYTES])?;
    Ok((stream, established))
}

/// Waits until the IPVS of this thread's namespace has a connection from that port.
fn wait_until_ipvs_knows(port: u16) -> Result<()> {
    // The third word of a line is the client's port.
    let port = format!("{port:04X}");
    let is_known = || {
        let connections = fs::read_to_string(IPVS_CONNECTIONS).unwrap_or_default();
        let mut ports = connections
            .lines()
            .filter_map(|it| it.split_whitespace().nth(2));
        ports.any(|it| it == port)
    };
    wait_until(PROBE_TIMEOUT, "the backup to know a connection", is_known).map(drop)
}

fn balance(network: &PairNetwork, index: usize, role: &str) -> Result<()> {
    let manager = &network.managers[index];
    let forward = "net.ipv4.ip_forward=1";
    manager.run("sysctl", &["--quiet", "--write", forward])?;
    let service = SocketAddrV4::new(SERVICE_ADDRESS, LOAD_PORT);
    let workers = [0, 1].map(|worker| SocketAddrV4::new(worker_address(worker), LOAD_PORT));
    balance_by_ipvs(manager, service, &workers)?;
    let interface = Side::Sync.interface(index);
    let daemon = ["--start-daemon", role, "--mcast-interface", &interface];
    manager.run("ipvsadm", &daemon).map(drop)
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&Crash::COLUMNS);
        for SyncRow {
            who,
            per_second,
            crash,
        } in &self.0
        {
            table.row(crash.row(format!("{per_second}/s, {who}")));
        }
        table.fmt(f)
    }
}
