//! TCP connections at a rate or many at once, from one client address or from many, and the servers that
//! answer them: what the benchmark `load` is made of.
//!
//! The first byte a client sends names who ends the connection, and how; the server answers
//! [`ANSWER_BYTES`] bytes and acts on it.

pub(crate) mod attempt;
mod client;
mod distant;
mod flood;
mod generator;
mod server;
mod tally;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use self::{
    client::{hold_twice, open_at_rate},
    flood::{Flood, prepare_flood},
    generator::Load,
    server::Server,
    tally::{Tally, percentile},
};
use crate::{
    command::output,
    namespace::Namespace,
    topology::{Node, Topology},
};

pub const ANSWER_BYTES: usize = 64;

/// On so many threads each server serves, and the client opens connections to be held: each thread has a
/// table of open files of its own, and as many fit in as a process may open.
const SHARDS: u32 = 2;
const OPEN_FILES: u64 = 20_000;

/// The addresses that are the client's after [`prepare`]: 2²² of them.
const CLIENT_NETWORK: &str = "10.64.0.0/10";
const FIRST_CLIENT: u32 = 0x0a40_0000;
const CLIENT_MASK: u32 = (1 << 22) - 1;

/// As a proxy with many connections is usually set: by default there are ports for 28,232.
const CLIENT_PORTS: &str = "net.ipv4.ip_local_port_range=1024 65535";

/// How many connections may wait to be accepted, so that no server's queue is what is measured.
const BACKLOG: i32 = 65_535;

/// Who ends a connection, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    ServerFin,
    ServerReset,
    ClientFin,
    ClientReset,
    /// The client resets the connection as soon as it is established, and requests nothing.
    ClientResetAtOnce,
}

impl Ending {
    /// The client's request: what the server must do after its answer.
    fn request(self) -> [u8; 1] {
        match self {
            Self::ServerFin => *b"f",
            Self::ServerReset => *b"r",
            Self::ClientFin | Self::ClientReset | Self::ClientResetAtOnce => *b"w",
        }
    }
}

/// The addresses from which a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// The address of its interface.
    One,
    /// So many, in turn.
    Few(u32),
    /// Another one each time.
    EverNew,
}

impl Sources {
    /// Returns the address of the connection of that `number`, if it must be a certain one.
    fn address(self, number: u32) -> Option<Ipv4Addr> {
        let offset = match self {
            Self::One => return None,
            Self::Few(count) => 1 + number % count,
            // An odd factor makes a permutation of the numbers, so that no address comes twice.
            Self::EverNew => number.wrapping_mul(0x009e_3779) & CLIENT_MASK,
        };
        Some(Ipv4Addr::from(FIRST_CLIENT + offset))
    }
}

/// Makes the client's addresses and ports usable and known to every node, and the servers' queues long.
///
/// # Errors
/// When a route or a setting is refused.
pub fn prepare(topology: &Topology) -> Result<()> {
    let local = ["route", "add", "local", CLIENT_NETWORK, "dev", "lo"];
    output(topology.client.ip().args(local))?;
    topology
        .client
        .run("sysctl", &["--quiet", "--write", CLIENT_PORTS])?;
    route(topology, CLIENT_NETWORK, topology.client.address())?;
    prepare_servers(topology)
}

/// Makes the servers' queues, and a proxy's, long.
fn prepare_servers(topology: &Topology) -> Result<()> {
    for node in servers(topology) {
        for queue in ["core.somaxconn", "ipv4.tcp_max_syn_backlog"] {
            let setting = format!("net.{queue}={BACKLOG}");
            node.run("sysctl", &["--quiet", "--write", &setting])?;
        }
    }
    Ok(())
}

/// Makes `network` reachable by a machine in the clients' network. Workers in a network of their own reach it by
/// the manager.
fn route(topology: &Topology, network: &str, by: Ipv4Addr) -> Result<()> {
    let is_near = |node: &&Node| node.address().octets()[..3] == by.octets()[..3];
    for node in servers(topology).filter(is_near) {
        let by = by.to_string();
        output(node.ip().args(["route", "add", network, "via", &by]))?;
    }
    Ok(())
}

fn servers(topology: &Topology) -> impl Iterator<Item = &Node> {
    [&topology.manager].into_iter().chain(&topology.workers)
}

/// Requests something over a new connection, and returns whether the answer came.
pub fn answers(mut connection: &TcpStream) -> bool {
    let request = Ending::ServerFin.request();
    let asked = connection.write_all(&request).is_ok();
    asked && connection.read_exact(&mut [0; ANSWER_BYTES]).is_ok()
}

/// Lets this process, and those it starts, open as many files as it may, and returns how many.
///
/// # Errors
/// When these are too few for what is measured.
pub fn raise_open_files() -> Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        most >= OPEN_FILES,
        "this process may open {most} files only; {OPEN_FILES} are needed: raise the hard limit (ulimit -Hn)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// Returns how many SYNs the stack of `namespace` has sent again.
///
/// # Errors
/// When the kernel does not count them.
pub fn repeated_syns(namespace: &Namespace) -> Result<u64> {
    const COUNTERS: &str = "/proc/thread-self/net/netstat";
    let counters = namespace.enter(|| fs::read_to_string(COUNTERS))?;
    let counters = counters.context("read the TCP counters")?;
    tcp_counter(&counters, "TCPSynRetrans").context("TCPSynRetrans is not counted")
}

/// Finds a counter: a line of names precedes each line of figures.
fn tcp_counter(counters: &str, name: &str) -> Option<u64> {
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, figures) = (lines.next()?, lines.next()?);
    let position = names.split(' ').position(|it| it == name)?;
    figures.split(' ').nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Sources, tcp_counter};

    #[test]
    fn finds_a_counter_by_its_name() {
        let counters =
            "TcpExt: SyncookiesSent TCPSynRetrans\nTcpExt: 1 22\nIpExt: InOctets\nIpExt: 3\n";
        assert_eq!(tcp_counter(counters, "TCPSynRetrans"), Some(22));
        assert_eq!(tcp_counter(counters, "InOctets"), None);
    }

    #[test]
    fn uses_as_many_addresses_as_asked_for() {
        let addresses = |sources: Sources| -> BTreeSet<_> {
            (0..10_000).map(|number| sources.address(number)).collect()
        };
        assert_eq!(addresses(Sources::One).len(), 1);
        assert_eq!(addresses(Sources::Few(200)).len(), 200);
        assert_eq!(addresses(Sources::EverNew).len(), 10_000);
    }
}
