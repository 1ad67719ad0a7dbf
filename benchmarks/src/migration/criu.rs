//! CRIU moves a process with its connections from one virtual machine to another.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    scenario::Silence,
    testbed::{MoveStats, Network},
};

/// Each machine's own address. The worker's address moves between them.
pub const OWN: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// Modules and programs by which CRIU reads sockets and blocks their packets.
pub const MODULES: &[&str] = &[
    "nf_tables",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "af_packet_diag",
    "netlink_diag",
];
pub const PROGRAMS: &[&str] = &["criu", "nft"];
/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Moves the server from the machine on the first host to the one on the second host.
pub fn migrate(
    shells: &mut [SerialShell],
    network: &Network,
    silence: Silence,
) -> Result<MoveStats> {
    network.announce(silence)?;
    let [source, destination] = shells else {
        bail!("there are no two machines with shells");
    };
    let stopped = Instant::now();
    let departed = source.run(&format!("depart {}", OWN[1]))?;
    thread::sleep(silence.duration().saturating_sub(stopped.elapsed()));
    destination.run("arrive")?;
    let pause = stopped.elapsed();
    network.announce_end(silence)?;
    let bytes = departed.split_whitespace().next();
    Ok(MoveStats {
        still_ms: pause.as_secs_f64() * 1e3,
        bytes: bytes
            .and_then(|it| it.parse().ok())
            .with_context(|| format!("read the size of CRIU's files from {departed:?}"))?,
    })
}

/// The shell of guest.sh on the second serial line of a machine.
#[derive(Debug)]
pub struct SerialShell(BufReader<UnixStream>);

impl SerialShell {
    /// Connects to a booting machine. QEMU discards output before that.
    ///
    /// # Errors
    /// QEMU does not listen on `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits until the shell is ready.
    ///
    /// # Errors
    /// It is not ready within a minute.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.read_output()
            .map(drop)
            .context("wait for the shell of a machine")
    }

    /// Runs a command, and returns its output.
    fn run(&mut self, command: &str) -> Result<String> {
        writeln!(self.0.get_mut(), "{command}")?;
        self.read_output()
            .with_context(|| format!("run {command} on the machine"))
    }

    fn read_output(&mut self) -> Result<String> {
        let mut printed = String::new();
        loop {
            let before = printed.len();
            ensure!(self.0.read_line(&mut printed)? > 0, "the machine has ended");
            match printed[before..].trim_end() {
                "ready" => return Ok(printed[..before].trim_end().to_owned()),
                "failed" => bail!("{}", printed[..before].trim_end()),
                _ => {}
            }
        }
    }
}
