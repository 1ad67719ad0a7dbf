//! A real keepalived with the files of `scripts/ha`, of which only the part that differs between machines is written
//! here.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::network::{SERVICE_ADDRESS, Side, nat_source};
use crate::{process::Process, topology::ipv6_counterpart};

/// What keepalived's own files are called in a manager's directory.
const HEAD: &str = "keepalived.conf";
const NOTIFY: &str = "notify";
const ROLES: &str = "roles";

/// A running keepalived.
#[derive(Debug)]
pub struct Keepalived {
    process: Process,
    directory: PathBuf,
}

/// A change of the machine's role, as keepalived has reported it.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Seconds since 1970.
    pub at: f64,
    /// `MASTER`, `BACKUP`, `FAULT` or `STOP`.
    pub state: String,
}

impl Keepalived {
    /// Writes the files of the manager of that `index` to its `directory`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn configure(directory: &Path, index: usize, managers: usize) -> Result<()> {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ha/memlb-pair.conf");
        let [clients, workers] = [Side::Clients, Side::Workers].map(|side| side.interface(index));
        let sources = (0..managers).map(nat_source);
        let (mut addresses, mut addresses_6) = (
            format!("{SERVICE_ADDRESS}/32 dev {clients}"),
            format!(
                "{}/128 dev {clients} preferred_lft forever",
                ipv6_counterpart(SERVICE_ADDRESS)
            ),
        );
        for source in sources {
            addresses += &format!(" \\\n    {source}/32 dev {workers}");
            addresses_6 += &format!(
                " \\\n    {}/128 dev {workers} preferred_lft forever",
                ipv6_counterpart(source)
            );
        }
        let head = format!(
            "$CLIENTS={clients}
$WORKERS={workers}
$ROUTER_ID=56
$ADDRESSES= \\
    {addresses}
$ADDRESSES_6= \\
    {addresses_6}
$WEIGHT_FILE={}
$NOTIFY={}
include {}
",
            Self::weight_file(directory).display(),
            directory.join(NOTIFY).display(),
            shared.display()
        );
        let roles = directory.join(ROLES);
        let notify = format!(
            "#!/bin/sh\necho \"$(date +%s.%N) $3\" >> {}\n",
            roles.display()
        );
        for (name, text, mode) in [
            (HEAD, head, 0o644),
            (NOTIFY, notify, 0o755),
            (ROLES, String::new(), 0o666),
        ] {
            let file = directory.join(name);
            fs::write(&file, text)
                .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
                .with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }

    /// Returns the file whose number keepalived adds to the priority.
    pub fn weight_file(directory: &Path) -> PathBuf {
        directory.join("vrrp-weight")
    }

    /// Starts keepalived by `command`, to which its arguments are added.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, directory: &Path, log: &Path) -> Result<Self> {
        let pid_files = ["keepalived.pid", "vrrp.pid"].map(|name| directory.join(name));
        for file in &pid_files {
            // One that was killed has left it, with a number that another process may have by now.
            fs::remove_file(file).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        command
            .args([
                "--dont-fork",
                "--no-syslog",
                "--log-console",
                "--log-detail",
                "--vrrp",
            ])
            .arg("--use-file")
            .arg(directory.join(HEAD))
            .arg("--pid")
            .arg(&pid_files[0])
            .arg("--vrrp_pid")
            .arg(&pid_files[1]);
        let process = Process::start("keepalived", &mut command, log)?;
        Ok(Self {
            process,
            directory: directory.to_owned(),
        })
    }

    /// Returns the changes of the role since the first start.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn transitions(&self) -> Result<Vec<Transition>> {
        let text = fs::read_to_string(self.directory.join(ROLES)).context("read the roles")?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines
            .map(|(at, state)| {
                let at = at.parse().context("a time")?;
                let state = state.to_owned();
                Ok(Transition { at, state })
            })
            .collect()
    }

    /// Asks keepalived to end. It gives its addresses up.
    ///
    /// # Errors
    /// When it has ended already, or does not.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(5)).map(drop)
    }

    /// Kills keepalived with `SIGKILL`, with its child: the addresses stay.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Returns what keepalived has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub(super) fn keep(self) {
        self.process.keep();
    }
}
