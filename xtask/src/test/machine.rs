//! A Debian that systemd boots in a container, at a node of a test's network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    Namespace, Process,
    command::{output, run},
    wait::{wait_for, wait_until},
};

/// How long a machine may take for one step.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A booted machine, switched off when dropped. Its mounts end with the mount namespace of this process.
pub struct Machine {
    /// systemd-nspawn.
    container: Process,
    /// The container's systemd.
    leader: String,
    root: PathBuf,
}

impl Machine {
    /// Boots a machine on top of the file system `debian`, with what it writes below `directory`.
    pub fn boot(name: &str, debian: &Path, node: &Namespace, directory: &Path) -> Result<Self> {
        let [upper, work, root, pins] =
            ["upper", "work", "root", "pins"].map(|it| directory.join(name).join(it));
        for folder in [&upper, &work, &root, &pins] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        run(Command::new("mount")
            .args(["--types=overlay", "overlay", "--options"])
            .arg(format!(
                "lowerdir={},upperdir={},workdir={}",
                debian.display(),
                upper.display(),
                work.display()
            ))
            .arg(&root))?;
        // With the mode that systemd gives it on a machine of its own.
        run(Command::new("mount")
            .args(["--types=bpf", "--options=mode=0700", "bpf"])
            .arg(&pins))?;
        fs::write(root.join("etc/hostname"), format!("{name}\n")).context("name the machine")?;
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn
            .args(["--quiet", "--boot", "--register=no", "--console=read-only"])
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--machine={name}"))
            .arg(format!(
                "--network-namespace-path=/run/netns/{}",
                node.name()
            ))
            // What any machine may do, and containers usually may not.
            .arg("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON")
            .arg("--system-call-filter=bpf")
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .arg(format!("--bind={}:/sys/fs/bpf", pins.display()));
        if !Path::new("/run/systemd/system").exists() {
            // No service manager is there to query a unit.
            nspawn.arg("--keep-unit");
        }
        let log = directory.join(name).join("boot.log");
        let container = Process::start(name, &mut nspawn, &log)?;
        let leader = wait_for(PATIENCE, &format!("{name} to begin"), || {
            leader_of(container.pid())
        })
        .with_context(|| container.log())?;
        let machine = Self {
            container,
            leader,
            root,
        };
        wait_until(PATIENCE, &format!("{name} to boot"), || {
            // Degraded machines say so with a failure.
            let state = machine.run("sh", &["-c", "systemctl is-system-running || true"]);
            state.is_ok_and(|it| ["running", "degraded"].contains(&it.trim()))
        })
        .with_context(|| machine.container.log())?;
        Ok(machine)
    }

    /// Runs a command line on the machine as root, and returns what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(
            Command::new("nsenter")
                .args(["--all", "--target", &self.leader, "--"])
                .args(["env", "--ignore-environment", "--chdir=/root"])
                .args(["PATH=/usr/sbin:/usr/bin", "DEBIAN_FRONTEND=noninteractive"])
                // Content with a file that can be edited.
                .arg("EDITOR=test -w")
                .arg(program)
                .args(arguments),
        )
    }

    /// Types commands on the machine one after the other, as root in its home.
    pub fn run_all(&self, commands: &[String]) -> Result<()> {
        for command in commands {
            self.sh(command)?;
        }
        Ok(())
    }

    /// Runs a line of shell on the machine.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run("sh", &["-c", line])
    }

    /// Returns one property of a unit.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let value = self.run(
            "systemctl",
            &["show", "--value", "--property", property, unit],
        )?;
        Ok(value.trim().to_owned())
    }

    /// Fails unless a property of a unit has that `value`.
    pub fn check_property(&self, unit: &str, property: &str, value: &str) -> Result<()> {
        let is = self.property(unit, property)?;
        ensure!(is == value, "{unit} has {property} {is}, not {value}");
        Ok(())
    }

    /// Fails unless the journal of a unit has `text`.
    pub fn check_journal(&self, unit: &str, text: &str) -> Result<()> {
        let unit = format!("--unit={unit}");
        let journal = self.run("journalctl", &["--no-pager", &unit])?;
        ensure!(journal.contains(text), "no {text:?} in:\n{journal}");
        Ok(())
    }

    /// Returns where a file of the machine is here.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Returns the systemd among the children of systemd-nspawn, which makes it by way of others.
fn leader_of(container: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{container}/task/{container}/children"));
    let children = children.unwrap_or_default();
    let is_systemd = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n")
    };
    children
        .split_whitespace()
        .find(is_systemd)
        .map(str::to_owned)
}
