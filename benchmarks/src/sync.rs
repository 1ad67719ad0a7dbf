//! Compares memlb's peers with IPVS's sync daemon: the connections that a crash loses, in an emulated machine whose kernel
//! has IPVS. This program measures there.

use std::{env, fmt, net::Ipv4Addr, net::SocketAddrV4, path::Path, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::{
    balancers::balance_by_ipvs,
    command::output,
    load::{Server, raise_open_files},
    namespace::unique_prefix,
    pair::{
        LOAD_PORT, Pair, PairNetwork, PairOptions, SERVICE_ADDRESS, Side, nat_source,
        worker_address,
    },
};
use serde::Serialize;
use serde_json::Value;

use super::{
    emulated::{self, REPORT},
    pair::Crash,
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
    Crash::of(&pair.network, per_second, true, moves)
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
    let moves = || network.take_over(1, &[GATEWAY]);
    Crash::of(&network, per_second, true, moves)
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
