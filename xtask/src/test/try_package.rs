//! The package on three clean machines, a manager and two workers: installed, started, hung, upgraded,
//! removed, purged.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use memlb_tests::{Connection, notice::say, wait::wait_until};

use super::{machine::PATIENCE, machines::Machines};

const MANAGER: &str = "memlb-manager.service";
const AGENT: &str = "memlb-agent.service";

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
const CAPABILITIES_OF_THE_MANAGER: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// The most that `systemd-analyze security` may find, in tenths.
const MOST_EXPOSURE: &str = "--threshold=25";

/// What an operator looks for, besides the services.
const FILES: &[&str] = &[
    "/usr/bin/memlb",
    "/etc/memlb/memlb.toml",
    "/etc/default/memlb-agent",
    "/usr/share/bash-completion/completions/memlb",
    "/usr/share/zsh/vendor-completions/_memlb",
    "/usr/share/fish/vendor_completions.d/memlb.fish",
    "/usr/share/doc/memlb/copyright",
    "/usr/share/doc/memlb/changelog.gz",
    "/usr/share/doc/memlb/operations.md",
    "/usr/share/man/man1/memlb.1.gz",
    "/usr/share/man/man1/memlb-manager.1.gz",
];

/// What is left when the package is removed, and gone when it is purged.
const REMAINS: &[&str] = &[
    "/etc/memlb/memlb.toml",
    "/etc/memlb/keys/worker1.key",
    "/var/lib/memlb",
    "/var/log/memlb/events.jsonl",
];

const ACCEPT_LOCAL: &str = "cat /proc/sys/net/ipv4/conf/lo/accept_local";

/// Wants a mount namespace of its own.
#[derive(clap::Args)]
pub struct TryPackage {
    package: PathBuf,
    /// The archive of a clean Debian
    debian: PathBuf,
    /// An empty folder, for the machines
    folder: PathBuf,
}

pub fn try_package(task: &TryPackage) -> Result<()> {
    let machines = Machines::boot(&task.package, &task.debian, &task.folder)?;
    let steps: [(&str, Step); 10] = [
        ("is installed, and waits", Machines::install),
        ("pleases systemd's checkers", Machines::analyze),
        ("says what it misses", Machines::start_unconfigured),
        ("starts with keys", Machines::start),
        ("takes root's pins over", Machines::take_over),
        ("has the fewest privileges", Machines::look_at_privileges),
        ("is noticed when it hangs", Machines::hang),
        ("is upgraded under traffic", Machines::upgrade),
        ("takes the programs along", Machines::remove),
        ("leaves nothing when purged", Machines::purge),
    ];
    for (what, step) in steps {
        say(format_args!("the package {what}"));
        step(&machines).with_context(|| {
            let journal = machines
                .manager
                .run("journalctl", &["--no-pager", "--lines=60"]);
            let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
            format!("the package {what}: no; the manager's journal ends so:\n{journal}\n")
        })?;
    }
    Ok(())
}

type Step = fn(&Machines) -> Result<()>;

impl Machines {
    fn install(&self) -> Result<()> {
        for machine in self.all() {
            machine.run("apt-get", &["install", "--yes", "./memlb.deb"])?;
            machine.run("ls", FILES)?;
            machine.run("dpkg", &["--verify", "memlb"])?;
            // One package for managers and workers must start neither by itself.
            for unit in [MANAGER, AGENT] {
                machine.expect(unit, "UnitFileState", "disabled")?;
                machine.expect(unit, "ActiveState", "inactive")?;
            }
        }
        Ok(())
    }

    fn analyze(&self) -> Result<()> {
        for unit in [MANAGER, AGENT, "memlb-pins.service"] {
            // The smallest Debian has no man.
            self.manager
                .run("systemd-analyze", &["verify", "--man=no", unit])?;
        }
        for unit in [MANAGER, AGENT] {
            let file = format!("/usr/lib/systemd/system/{unit}");
            let arguments = ["security", "--offline=true", MOST_EXPOSURE, &file];
            let found = self.manager.run("systemd-analyze", &arguments)?;
            say(found.lines().last().unwrap_or_default());
        }
        Ok(())
    }

    /// An agent that was told nothing says so once, and is not started again and again.
    fn start_unconfigured(&self) -> Result<()> {
        let worker = &self.workers[0];
        let started = worker.run("systemctl", &["start", AGENT]);
        ensure!(started.is_err(), "an agent without a manager has started");
        worker.expect(AGENT, "ActiveState", "failed")?;
        worker.expect(AGENT, "NRestarts", "0")?;
        worker.expect_in_journal(AGENT, "--manager")
    }

    /// As docs/installing.md tells.
    fn start(&self) -> Result<()> {
        let manager = &self.manager;
        for (worker, name) in self.workers.iter().zip(["worker1", "worker2"]) {
            let key = format!("/etc/memlb/keys/{name}.key");
            manager.run("memlb", &["keygen", "--name", name, "--output", &key])?;
            fs::copy(manager.file(&key), worker.file("/etc/memlb/agent.key"))
                .context("bring the key to its worker")?;
            let arguments = "MEMLB_AGENT=\"--manager 192.168.56.101\"\n";
            fs::write(worker.file("/etc/default/memlb-agent"), arguments)
                .context("write the agent's arguments")?;
        }
        let enforce = r#"s/^authentication = "off"/authentication = "enforce"/"#;
        manager.run("sed", &["--in-place", enforce, "/etc/memlb/memlb.toml"])?;
        manager.run("systemctl", &["enable", "--now", MANAGER])?;
        // Ready means attached, and listening for heartbeats.
        let page = self.page()?;
        ensure!(page == "Manager", "clients get {page:?} before any worker");
        manager.sh("grep :270F /proc/net/udp")?;
        for worker in &self.workers {
            worker.run("systemctl", &["enable", "--now", AGENT])?;
        }
        self.wait_for_all()?;
        let page = self.page()?;
        ensure!(page.starts_with("worker"), "clients get {page:?}");
        manager.run("systemctl", &["reload", MANAGER])?;
        Ok(())
    }

    /// From a manager that root has started by hand.
    fn take_over(&self) -> Result<()> {
        let manager = &self.manager;
        manager.run("systemctl", &["stop", MANAGER])?;
        manager.run("memlb", &["unload"])?;
        let by_hand = [
            "--unit=by-hand",
            "--property=Type=notify",
            "memlb",
            "manager",
        ];
        manager.run("systemd-run", &by_hand)?;
        manager.run("systemctl", &["stop", "by-hand"])?;
        manager.run("systemctl", &["start", MANAGER])?;
        let foreign = manager.sh("find /sys/fs/bpf/memlb -not -user memlb")?;
        ensure!(foreign.is_empty(), "not the manager's: {foreign}");
        manager.expect_in_journal(MANAGER, "adopting the maps")?;
        self.wait_for_all()
    }

    fn look_at_privileges(&self) -> Result<()> {
        let user = self.manager.sh("id --user memlb")?;
        let worker = &self.workers[0];
        let expected = [
            (&self.manager, MANAGER, CAPABILITIES_OF_THE_MANAGER),
            (worker, AGENT, 0),
        ];
        for (machine, unit, capabilities) in expected {
            let pid = machine.property(unit, "MainPID")?;
            let status = machine.sh(&format!("cat /proc/{pid}/status"))?;
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                let has = u64::from_str_radix(field(&status, set)?, 16)?;
                ensure!(has == capabilities, "{unit} has {set} {has:x}");
            }
            let uid = field(&status, "Uid:")?;
            if unit == MANAGER {
                ensure!(
                    uid == user.trim(),
                    "{unit} runs as user {uid}, not as memlb"
                );
            } else {
                // From the range of DynamicUser=.
                let dynamic = 61184..=65519;
                ensure!(
                    dynamic.contains(&uid.parse::<u32>()?),
                    "{unit} runs as user {uid}"
                );
            }
            ensure!(field(&status, "NoNewPrivs:")? == "1", "{unit} can get more");
            ensure!(field(&status, "Seccomp:")? == "2", "{unit} has no filter");
        }
        let ask_as = |group: &str| {
            let group = format!("--regid={group}");
            let user = ["--reuid=nobody", "--clear-groups", &group];
            let question = ["memlb", "status"];
            self.manager
                .run("setpriv", &[&user[..], &question].concat())
        };
        ask_as("memlb")?;
        ensure!(ask_as("nogroup").is_err(), "anybody may ask");
        // What it writes without being root.
        ensure!(
            self.manager.sh(ACCEPT_LOCAL)?.trim() == "1",
            "no accept_local"
        );
        self.manager.run("ls", REMAINS)?;
        Ok(())
    }

    /// A stopped process is a loop that does not turn.
    fn hang(&self) -> Result<()> {
        let hung = [(&self.manager, MANAGER), (&self.workers[0], AGENT)];
        for (machine, unit) in hung {
            machine.run(
                "systemctl",
                &["kill", "--kill-whom=main", "--signal=STOP", unit],
            )?;
        }
        self.page().context("while the manager hangs")?;
        for (machine, unit) in hung {
            wait_until(PATIENCE, &format!("{unit} to be started anew"), || {
                machine.expect(unit, "NRestarts", "1").is_ok()
                    && machine.expect(unit, "ActiveState", "active").is_ok()
            })?;
            machine.expect_in_journal(unit, "Watchdog timeout")?;
        }
        self.wait_for_all()
    }

    fn upgrade(&self) -> Result<()> {
        let before = self.manager.property(MANAGER, "MainPID")?;
        let mut open = Connection::open(&self.network.client, self.service(), PATIENCE)?;
        let page = open.get("/")?.first_line();
        for machine in self.all() {
            machine.run(
                "apt-get",
                &["install", "--yes", "--reinstall", "./memlb.deb"],
            )?;
        }
        let after = self.manager.property(MANAGER, "MainPID")?;
        ensure!(before != after, "the old manager still runs");
        self.manager.expect(MANAGER, "ActiveState", "active")?;
        self.manager
            .expect_in_journal(MANAGER, "adopting the maps")?;
        let now = open.get("/").context("on a connection from before")?;
        ensure!(now.first_line() == page, "{page} became {now:?}");
        self.wait_for_all()
    }

    fn remove(&self) -> Result<()> {
        let manager = &self.manager;
        manager.run("apt-get", &["remove", "--yes", "memlb"])?;
        manager.expect(MANAGER, "ActiveState", "inactive")?;
        let pins = manager.sh("ls /sys/fs/bpf")?;
        ensure!(!pins.contains("memlb"), "pins are left: {pins}");
        ensure!(
            manager.sh(ACCEPT_LOCAL)?.trim() == "0",
            "accept_local is left"
        );
        ensure!(self.page().is_err(), "clients are still served");
        manager.run("ls", REMAINS)?;
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        for machine in self.all() {
            machine.run("apt-get", &["purge", "--yes", "memlb"])?;
            let left = "find /etc /var/lib /var/log /usr /run -name '*memlb*' -not -path '/var/lib/dpkg/*'";
            let left = machine.sh(left)?;
            ensure!(left.is_empty(), "left: {left}");
        }
        Ok(())
    }
}

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    value.with_context(|| format!("no {name} in /proc/PID/status"))
}
