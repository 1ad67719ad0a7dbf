//! CRIU: a process moves with its connections, from one virtual machine to another one.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{guests::Guests, scenario::Silence, scene::Moved};

/// Beside the worker's address, which moves, each machine has one of its own.
pub const OWN: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// What CRIU needs to find out about sockets, and to keep packets from them.
pub const MODULES: &[&str] = &[
    "nf_tables",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "af_packet_diag",
    "netlink_diag",
];
pub const PROGRAMS: &[&str] = &["criu", "nft"];
/// Emulation takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Moves the server from the machine on the first host to the one on the second host.
pub fn migrate(guests: &mut Guests, silence: Silence) -> Result<Moved> {
    guests.system.announce(silence)?;
    let [source, destination] = guests.orders.as_mut_slice() else {
        bail!("there are no two machines that take orders");
    };
    let still = Instant::now();
    let departed = source.give(&format!("depart {}", OWN[1]))?;
    thread::sleep(silence.duration().saturating_sub(still.elapsed()));
    destination.give("arrive")?;
    let still = still.elapsed();
    guests.system.announce_end(silence)?;
    let bytes = departed.split_whitespace().next();
    Ok(Moved {
        still_ms: still.as_secs_f64() * 1e3,
        bytes: bytes
            .and_then(|it| it.parse().ok())
            .with_context(|| format!("CRIU's files have a size: {departed}"))?,
    })
}

/// The second serial line of a machine, which takes orders there.
#[derive(Debug)]
pub struct Orders(BufReader<UnixStream>);

impl Orders {
    /// Connects to a machine that boots; before, what it says is lost.
    ///
    /// # Errors
    /// When QEMU does not listen there.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits until the machine takes orders.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn wait_until_taken(&mut self) -> Result<()> {
        self.answer()
            .map(drop)
            .context("wait for a machine that takes orders")
    }

    /// Gives an order, and returns what its command printed.
    fn give(&mut self, order: &str) -> Result<String> {
        writeln!(self.0.get_mut(), "{order}")?;
        self.answer()
            .with_context(|| format!("the machine's order {order}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut printed = String::new();
        loop {
            let before = printed.len();
            ensure!(self.0.read_line(&mut printed)? > 0, "the machine is gone");
            match printed[before..].trim_end() {
                "ready" => return Ok(printed[..before].trim_end().to_owned()),
                "failed" => bail!("{}", printed[..before].trim_end()),
                _ => {}
            }
        }
    }
}
