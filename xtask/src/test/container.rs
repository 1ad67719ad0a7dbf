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

/// Deadline for one step of a container.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A booted container, which ends when it is dropped. Its mounts end with the mount namespace of this process.
pub struct Container {
    /// systemd-nspawn.
    container: Process,
    /// The container's systemd.
    leader: String,
    root: PathBuf,
}

impl Container {
    /// Boots a container from an overlay over the file system `debian`. Its writes go below `directory`.
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
        // With the mode that systemd sets on a host.
        run(Command::new("mount")
            .args(["--types=bpf", "--options=mode=0700", "bpf"])
            .arg(&pins))?;
        fs::write(root.join("etc/hostname"), format!("{name}\n")).context("set the host name")?;
        let mut nspawn = Command::new("systemd-nspawn");
        nspawn
            .args(["--quiet", "--boot", "--register=no", "--console=read-only"])
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--machine={name}"))
            .arg(format!(
                "--network-namespace-path=/run/netns/{}",
                node.name()
            ))
            // Allowed on a host, but not in containers by default.
            .arg("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON")
            .arg("--system-call-filter=bpf")
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .arg(format!("--bind={}:/sys/fs/bpf", pins.display()));
        if !Path::new("/run/systemd/system").exists() {
            // This host has no systemd, which would create a unit.
            nspawn.arg("--keep-unit");
        }
        let log = directory.join(name).join("boot.log");
        let container = Process::start(name, &mut nspawn, &log)?;
        let leader = wait_for(PATIENCE, &format!("{name} to start"), || {
            leader_of(container.pid())
        })
        .with_context(|| container.log())?;
        let machine = Self {
            container,
            leader,
            root,
        };
        wait_until(PATIENCE, &format!("{name} to boot"), || {
            // The command fails if the state is "degraded".
            let state = machine.run("sh", &["-c", "systemctl is-system-running || true"]);
            state.is_ok_and(|it| ["running", "degraded"].contains(&it.trim()))
        })
        .with_context(|| machine.container.log())?;
        Ok(machine)
    }

    /// Runs a program in the container as root, and returns its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(
            Command::new("nsenter")
                .args(["--all", "--target", &self.leader, "--"])
                .args(["env", "--ignore-environment", "--chdir=/root"])
                .args(["PATH=/usr/sbin:/usr/bin", "DEBIAN_FRONTEND=noninteractive"])
                // Succeeds if the file is writable.
                .arg("EDITOR=test -w")
                .arg(program)
                .args(arguments),
        )
    }

    /// Runs shell commands in sequence, as root in its home.
    pub fn run_all(&self, commands: &[String]) -> Result<()> {
        for command in commands {
            self.sh(command)?;
        }
        Ok(())
    }

    /// Runs a shell command.
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
        ensure!(
            journal.contains(text),
            "the journal has no {text:?}:\n{journal}"
        );
        Ok(())
    }

    /// Returns the path on the host of a file in the container.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Finds the container's systemd among the child processes of systemd-nspawn.
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
