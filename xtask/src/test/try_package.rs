//! Tests the package in three clean containers, a manager and two workers: installation, start, hang, upgrade, removal,
//! purge.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    Connection, Probe, command::output, document::Document, notice::print_message, wait::wait_until,
};

use super::{
    container::{Container, PATIENCE},
    containers::Containers,
    guide::Guide,
};
use crate::workspace::root;

const MANAGER: &str = "memlb-manager.service";
const AGENT: &str = "memlb-agent.service";

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF: of the manager, and of an agent with a DSR translator.
const CAPABILITIES_FOR_BPF: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// Highest accepted exposure of `systemd-analyze security`, in tenths.
const MOST_EXPOSURE: &str = "--threshold=25";

/// Files of the package, besides the services.
const FILES: &[&str] = &[
    "/usr/bin/memlb",
    "/etc/memlb/memlb.toml",
    "/etc/default/memlb-agent",
    "/usr/share/bash-completion/completions/memlb",
    "/usr/share/zsh/vendor-completions/_memlb",
    "/usr/share/fish/vendor_completions.d/memlb.fish",
    "/usr/share/doc/memlb/copyright",
    "/usr/share/doc/memlb/changelog.gz",
    "/usr/share/doc/memlb/README.md",
    "/usr/share/doc/memlb/docs/operations.md",
    "/usr/share/doc/memlb/scripts/ha/memlb-pair.conf",
    "/usr/share/doc/memlb/scripts/monitoring/memlb.rules.yml",
    "/usr/share/man/man1/memlb.1.gz",
    "/usr/share/man/man1/memlb-manager.1.gz",
    "/usr/share/man/man5/memlb.toml.5.gz",
];

/// Files that remain after the removal of the package, and that its purge deletes.
const REMAINS: &[&str] = &[
    "/etc/memlb/memlb.toml",
    "/etc/memlb/keys/worker1.key",
    "/var/lib/memlb",
    "/var/log/memlb/events.jsonl",
];

const DROP_INS: &str = "/etc/systemd/system/memlb-agent.service.d";

const ACCEPT_LOCAL: &str = "cat /proc/sys/net/ipv4/conf/lo/accept_local";

/// Needs a mount namespace of its own.
#[derive(Debug, clap::Args)]
pub struct TryPackage {
    package: PathBuf,
    /// The archive of a clean Debian
    debian: PathBuf,
    /// An empty folder, for the containers
    folder: PathBuf,
}

pub fn try_package(task: &TryPackage) -> Result<()> {
    let test = PackageTest {
        guide: Guide::read()?,
        machines: Containers::boot(&task.package, &task.debian, &task.folder)?,
        package: &task.package,
        folder: &task.folder,
    };
    let steps: [(&str, Step<'_>); 11] = [
        (
            "is installed, without starting services",
            PackageTest::install,
        ),
        ("passes systemd's checks", PackageTest::analyze),
        (
            "reports a missing configuration",
            PackageTest::start_unconfigured,
        ),
        ("starts with keys", PackageTest::start),
        ("adopts pins of root", PackageTest::adopt_manual_manager),
        ("has minimal privileges", PackageTest::check_privileges),
        ("serves in mode dsr", PackageTest::switch_to_dsr),
        ("is restarted when it hangs", PackageTest::stop_processes),
        ("is upgraded under load", PackageTest::upgrade),
        ("is removed with its packet programs", PackageTest::remove),
        ("leaves nothing after its purge", PackageTest::purge),
    ];
    for (what, step) in steps {
        print_message(format_args!("the package {what}"));
        step(&test).with_context(|| {
            let manager = &test.machines.manager;
            let journal = manager.run("journalctl", &["--no-pager", "--lines=60"]);
            let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
            format!("failed: the package {what}; end of the manager's journal:\n{journal}\n")
        })?;
    }
    Ok(())
}

type Step<'a> = fn(&PackageTest<'a>) -> Result<()>;

/// The package under test, the containers, and the guide.
struct PackageTest<'a> {
    guide: Guide,
    machines: Containers,
    package: &'a Path,
    folder: &'a Path,
}

impl Deref for PackageTest<'_> {
    type Target = Containers;

    fn deref(&self) -> &Containers {
        &self.machines
    }
}

impl PackageTest<'_> {
    fn install(&self) -> Result<()> {
        self.manager.run_all(&self.guide.install)?;
        for worker in &self.workers {
            worker.run_all(&self.guide.install)?;
        }
        for machine in self.all() {
            machine.run("ls", FILES)?;
            machine.run("dpkg", &["--verify", "memlb"])?;
            // The package is for managers and workers, so it must start neither service.
            for unit in [MANAGER, AGENT] {
                machine.check_property(unit, "UnitFileState", "disabled")?;
                machine.check_property(unit, "ActiveState", "inactive")?;
            }
        }
        Ok(())
    }

    fn analyze(&self) -> Result<()> {
        for unit in [MANAGER, AGENT, "memlb-pins.service"] {
            // This Debian has no man.
            self.manager
                .run("systemd-analyze", &["verify", "--man=no", unit])?;
        }
        for unit in [MANAGER, AGENT, "memlb-pins.service"] {
            let file = format!("/usr/lib/systemd/system/{unit}");
            let arguments = ["security", "--offline=true", MOST_EXPOSURE, &file];
            let found = self.manager.run("systemd-analyze", &arguments)?;
            print_message(found.lines().last().unwrap_or_default());
        }
        Ok(())
    }

    /// An agent without arguments fails once, and is not restarted.
    fn start_unconfigured(&self) -> Result<()> {
        let worker = &self.workers[0];
        let started = worker.run("systemctl", &["start", AGENT]);
        ensure!(started.is_err(), "an agent without a manager has started");
        worker.check_property(AGENT, "ActiveState", "failed")?;
        worker.check_property(AGENT, "NRestarts", "0")?;
        worker.check_journal(AGENT, "--manager")
    }

    fn start(&self) -> Result<()> {
        let manager = &self.manager;
        manager.run_all(&self.guide.start_manager)?;
        // When systemd reports it as ready, it is attached and listens for heartbeats.
        let page = self.page()?;
        ensure!(page == "Manager", "clients get {page:?} before any worker");
        manager.sh("grep :270F /proc/net/udp")?;
        for (worker, name) in self.workers.iter().zip(["worker1", "worker2"]) {
            let key = format!("/etc/memlb/keys/{name}.key");
            // With the file name in the guide.
            fs::copy(manager.file(&key), worker.file("/root/worker1.key"))
                .context("copy the key to its worker")?;
            worker.run_all(&self.guide.start_agent)?;
        }
        self.wait_for_all()?;
        let page = self.page()?;
        ensure!(page.starts_with("worker"), "clients get {page:?}");
        for worker in &self.workers {
            let said = worker.run("memlb", &["doctor", "--agent"])?;
            ensure!(said.contains("and knows the key"), "doctor says {said}");
            // Only of the running agent, not of an earlier start without its key.
            let warnings = worker.run(
                "sh",
                &[
                    "-c",
                    &format!(
                        "journalctl --quiet -o cat -p warning \
                         _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {AGENT})"
                    ),
                ],
            );
            let warnings = warnings.unwrap_or_default();
            ensure!(warnings.is_empty(), "a healthy agent warns: {warnings}");
        }
        let events = [
            "-u",
            MANAGER,
            "MEMLB_EVENT=worker_up",
            "-p",
            "info",
            "-o",
            "cat",
        ];
        let events = manager.run("journalctl", &events)?;
        ensure!(
            events.contains("worker1 is up"),
            "the journal has {events:?}"
        );
        manager.run("systemctl", &["reload", MANAGER])?;
        manager.run("memlb", &["doctor"])?;
        Ok(())
    }

    /// Adopts the pins of a manager that root has started by hand.
    fn adopt_manual_manager(&self) -> Result<()> {
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
        ensure!(
            foreign.is_empty(),
            "files that do not belong to the manager: {foreign}"
        );
        manager.check_journal(MANAGER, "adopting the maps")?;
        self.wait_for_all()
    }

    fn check_privileges(&self) -> Result<()> {
        let user = self.manager.sh("id --user memlb")?;
        let worker = &self.workers[0];
        let expected = [
            (&self.manager, MANAGER, CAPABILITIES_FOR_BPF),
            (worker, AGENT, 0),
        ];
        for (machine, unit, capabilities) in expected {
            let status = check_process(machine, unit, capabilities)?;
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
        }
        let query_as = |group: &str| {
            let group = format!("--regid={group}");
            let user = ["--reuid=nobody", "--clear-groups", &group];
            self.manager
                .run("setpriv", &[&user[..], &["memlb", "status"]].concat())
        };
        query_as("memlb")?;
        ensure!(
            query_as("nogroup").is_err(),
            "any user may query the manager"
        );
        // The manager writes it without being root.
        ensure!(
            self.manager.sh(ACCEPT_LOCAL)?.trim() == "1",
            "accept_local is not set"
        );
        self.manager.run("ls", REMAINS)?;
        Ok(())
    }

    /// Switches to mode `dsr` by the drop-in of docs/dsr.md, and back.
    fn switch_to_dsr(&self) -> Result<()> {
        let document = Document::read(root(), "docs/dsr.md")?;
        let mut blocks = document.blocks.iter();
        let drop_in = blocks.find(|block| block.language == "ini");
        let drop_in = &drop_in.context("docs/dsr.md has a drop-in")?.text;
        for (worker, port) in self.workers.iter().zip([8081, 8082]) {
            fs::create_dir(worker.file(DROP_INS)).context("make the folder of the drop-in")?;
            fs::write(worker.file(DROP_INS).join("dsr.conf"), drop_in)
                .context("write the drop-in")?;
            worker.sh(&format!(
                "echo 'MEMLB_AGENT=\"--manager 192.168.56.101 --dsr 192.168.56.101:80={port}\"' \
                     > /etc/default/memlb-agent
                 systemctl daemon-reload
                 systemctl restart {AGENT}"
            ))?;
        }
        self.set_mode("dsr")?;
        let page = self.page()?;
        ensure!(page.starts_with("worker"), "clients get {page:?}");
        for (worker, port) in self.workers.iter().zip([8081, 8082]) {
            let exposure = ["security", MOST_EXPOSURE, AGENT];
            let found = worker.run("systemd-analyze", &exposure)?;
            print_message(found.lines().last().unwrap_or_default());
            check_process(worker, AGENT, CAPABILITIES_FOR_BPF)?;
            worker.run("ls", &["/sys/fs/bpf/memlb-agent/clients"])?;
            worker.sh(&format!(
                "memlb doctor --agent --manager 192.168.56.101 --key /etc/memlb/agent.key \
                     --check http://127.0.0.1:{port}/"
            ))?;
        }
        self.manager.run("memlb", &["doctor"])?;

        self.set_mode("nat")?;
        for worker in &self.workers {
            fs::remove_dir_all(worker.file(DROP_INS)).context("remove the drop-in")?;
            worker.run_all(&self.guide.start_agent[1..])?;
            worker.sh(&format!(
                "systemctl daemon-reload; systemctl restart {AGENT}"
            ))?;
            let pins = worker.sh("ls /sys/fs/bpf")?;
            ensure!(
                !pins.contains("memlb"),
                "the DSR translator has left {pins}"
            );
        }
        self.wait_for_all()
    }

    /// Sets the service's mode, and waits until all workers are eligible.
    fn set_mode(&self, mode: &str) -> Result<()> {
        let edit = format!("s/^mode = .*/mode = \"{mode}\"/");
        let file = "/etc/memlb/memlb.toml";
        self.manager.run("sed", &["--in-place", &edit, file])?;
        self.manager.run("memlb", &["reload"])?;
        self.wait_for_all()
    }

    /// A stopped process does not notify the watchdog.
    fn stop_processes(&self) -> Result<()> {
        let hung = [(&self.manager, MANAGER), (&self.workers[0], AGENT)];
        for (machine, unit) in hung {
            machine.run(
                "systemctl",
                &["kill", "--kill-whom=main", "--signal=STOP", unit],
            )?;
        }
        self.page().context("while the manager hangs")?;
        for (machine, unit) in hung {
            wait_until(PATIENCE, &format!("{unit} to be restarted"), || {
                machine.check_property(unit, "NRestarts", "1").is_ok()
                    && machine
                        .check_property(unit, "ActiveState", "active")
                        .is_ok()
            })?;
            machine.check_journal(unit, "Watchdog timeout")?;
        }
        self.wait_for_all()
    }

    fn upgrade(&self) -> Result<()> {
        let name = self.guide.next_package()?;
        let package = next_package(self.package, name, self.folder)?;
        let before = self.manager.property(MANAGER, "MainPID")?;
        let mut open = Connection::open(&self.network.client, self.service(), PATIENCE)?;
        let page = open.get("/")?.first_line();
        let every = Duration::from_millis(10);
        let probe = Probe::start(&self.network.client, self.service(), every, PATIENCE)?;
        for machine in self.all() {
            fs::copy(&package, machine.file(&format!("/root/{name}")))
                .context("copy the package")?;
            machine.run_all(&self.guide.upgrade)?;
        }
        let after = self.manager.property(MANAGER, "MainPID")?;
        ensure!(before != after, "the manager was not restarted");
        self.manager
            .check_property(MANAGER, "ActiveState", "active")?;
        self.manager.check_journal(MANAGER, "adopting the maps")?;
        let now = open.get("/").context("request on the old connection")?;
        ensure!(now.first_line() == page, "{page} became {now:?}");
        self.wait_for_all()?;
        let report = probe.stop()?;
        let failed: Vec<_> = report.failures().take(3).collect();
        ensure!(
            failed.is_empty(),
            "requests failed during the upgrade: {failed:?}"
        );
        ensure!(report.requests.len() > 100, "too few requests");
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let manager = &self.manager;
        manager.run_all(&self.guide.remove)?;
        manager.check_property(MANAGER, "ActiveState", "inactive")?;
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
            machine.run_all(&self.guide.purge)?;
            let left = "find /etc /var/lib /var/log /usr /run -name '*memlb*' -not -path '/var/lib/dpkg/*'";
            let left = machine.sh(left)?;
            ensure!(left.is_empty(), "left: {left}");
        }
        Ok(())
    }
}

/// Makes the package that upgrades `package`, as file `name` in `folder`.
fn next_package(package: &Path, name: &str, folder: &Path) -> Result<PathBuf> {
    let version = name.split('_').nth(1).context("the name has no version")?;
    let (contents, next) = (folder.join("next"), folder.join(name));
    output(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .args([package, &contents]),
    )?;
    let control = contents.join("DEBIAN/control");
    output(
        Command::new("sed")
            .args(["--in-place", &format!("s/^Version: .*/Version: {version}/")])
            .arg(control),
    )?;
    output(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group", "-Znone"])
            .args([&contents, &next]),
    )?;
    Ok(next)
}

/// Fails unless the process of a unit has these `capabilities` and cannot gain more. Returns its status.
fn check_process(machine: &Container, unit: &str, capabilities: u64) -> Result<String> {
    let pid = machine.property(unit, "MainPID")?;
    let status = machine.sh(&format!("cat /proc/{pid}/status"))?;
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let has = u64::from_str_radix(field(&status, set)?, 16)?;
        ensure!(has == capabilities, "{unit} has {set} {has:x}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        let has = u64::from_str_radix(field(&status, set)?, 16)?;
        ensure!(has & !capabilities == 0, "{unit} has {set} {has:x}");
    }
    ensure!(
        field(&status, "NoNewPrivs:")? == "1",
        "{unit} can gain privileges"
    );
    ensure!(
        field(&status, "Seccomp:")? == "2",
        "{unit} has no system call filter"
    );
    Ok(status)
}

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    value.with_context(|| format!("no {name} in /proc/PID/status"))
}
