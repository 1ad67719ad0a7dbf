//! Operators' errors: each has a clear message and an exit status, and leaves nothing attached.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use memlb_tests::{
    Cluster, ClusterOptions, Shape, Topology, cli::assert_failure, cluster::binary,
    namespace::unique_prefix, root_test,
};

const USAGE: i32 = 2;
const RUN_TIME: i32 = 1;

const CONFIGURATION: &str = "[manager]
interfaces = [\"eth1\"]
event_log = \"\"
control_socket = \"SOCKET\"

[[service]]
name = \"web\"
address = \"192.168.56.101:80\"
fallback = \"192.168.56.101:8080\"
workers = [
    { name = \"worker1\", address = \"192.168.56.103:8081\" },
    { name = \"worker2\", address = \"192.168.56.104:8082\" },
]
";

#[root_test]
fn explains_missing_permission_for_the_control_socket() {
    let cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    // Where anybody may run it.
    let binary = cluster.paths.directory.join("memlb");
    fs::copy(&cluster.binary, &binary).unwrap();
    for order in [&["drain", "worker1"][..], &["status"]] {
        let mut command = cluster.topology.manager.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(&binary).args(order);
        let socket = cluster.paths.control_socket();
        let refused = command.arg("--control-socket").arg(socket).output();
        let says = ["manager.sock", "use sudo, or join the socket's group"];
        assert_failure(&refused.unwrap(), RUN_TIME, &says);
    }
    assert_eq!(cluster.backend("worker1").unwrap()["state"], "up");
    assert!(
        cluster
            .events_of("admin_command_applied")
            .unwrap()
            .is_empty()
    );
}

#[root_test]
fn explains_configuration_errors() {
    let machine = Machine::new();
    let cases: [(&str, &str, &[&str]); 14] = [
        // An unknown key, in a table and at the top.
        (
            "interfaces = ",
            "interfacs = [\"eth0\"]\ninterfaces = ",
            &["line 2", "interfacs", "interfaces"],
        ),
        (
            "[manager]",
            "[manger]\n[manager]",
            &["line 1", "manger", "manager"],
        ),
        // Bad addresses.
        (
            "192.168.56.101:80\"",
            "192.168.56.101\"",
            &["service.address", "192.168.56.101", "port"],
        ),
        (
            "192.168.56.103:8081",
            "192.168.56.300:8081",
            &["192.168.56.300:8081"],
        ),
        ("192.168.56.103:8081", "worker1:8081", &["worker1:8081"]),
        ("192.168.56.103:8081", "[fd00::1]:8081", &["IPv6"]),
        // Two workers of one name, two of one address.
        (
            "\"worker2\"",
            "\"worker1\"",
            &["worker1", "already belongs", "line 12"],
        ),
        (
            "192.168.56.104:8082",
            "192.168.56.103:8081",
            &["192.168.56.103:8081"],
        ),
        // A worker that would be dead between any two heartbeats.
        (
            "[manager]",
            "[failover]\nheartbeat_interval = \"200ms\"\ndown_after = \"599ms\"\n[manager]",
            &["line 3", "down_after", "600ms"],
        ),
        (
            "[manager]",
            "[failover]\ndown_after = \"soon\"\n[manager]",
            &["down_after", "soon"],
        ),
        (
            "[manager]",
            "[failover]\ndown_after = 1500\n[manager]",
            &["down_after", "1500ms"],
        ),
        // No TOML at all.
        ("[manager]", "[manager", &["line 1"]),
        // Nothing to do.
        (
            "interfaces = [\"eth1\"]",
            "interfaces = []",
            &["manager.interfaces", "eth1"],
        ),
        ("192.168.56.101:8080", "192.168.56.105:8080", &["fallback"]),
    ];
    let good = machine.configuration();
    assert!(machine.check(&good).status.success());
    for (right, wrong, says) in cases {
        assert!(good.contains(right), "{right}");
        let text = good.replacen(right, wrong, 1);
        assert_failure(&machine.check(&text), USAGE, says);
        // The manager says the same before it touches anything.
        let file = machine.file("wrong.toml", &text);
        assert_failure(&machine.manager(&["--config", &file]), USAGE, says);
        machine.assert_untouched();
    }
}

#[root_test]
fn reports_all_configuration_errors_at_once() {
    let machine = Machine::new();
    let text = machine
        .configuration()
        .replace("192.168.56.103:8081", "nowhere")
        .replace("\"worker2\"", "\"worker 2\"");
    assert_failure(
        &machine.check(&text),
        USAGE,
        &["line 11", "nowhere", "line 12", "name"],
    );
}

#[root_test]
fn explains_wrong_usage() {
    let machine = Machine::new();
    let absent = machine.directory.join("absent.toml").display().to_string();
    let config = machine.file("good.toml", &machine.configuration());
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["manager", "--config", &absent],
            &[&absent, "cannot be read"],
        ),
        (&["check", &absent], &[&absent, "cannot be read"]),
        (
            &["manager", "--config", &config, "--attach", "magic"],
            &["--attach", "magic", "xdp"],
        ),
        (
            &["manager", "--config", &config, "--down-after", "200ms"],
            &["--down-after", "300ms"],
        ),
        (
            &["manager", "--config", &config, "--heartbeat-listen", "9999"],
            &["--heartbeat-listen", "9999"],
        ),
        (&["balance"], &["balance"]),
        (&["agent", "--name", "worker1"], &["--manager"]),
        (
            &["agent", "--manager", "192.168.56.101", "--name", "wor ker"],
            &["--name", "wor ker"],
        ),
        (
            &[
                "agent",
                "--manager",
                "192.168.56.101",
                "--name",
                "w",
                "--interval",
                "0s",
            ],
            &["--interval"],
        ),
    ];
    for (arguments, says) in cases {
        assert_failure(&machine.run(arguments), USAGE, says);
        machine.assert_untouched();
    }
}

#[root_test]
fn explains_run_time_errors() {
    let machine = Machine::new();
    let socket = machine.directory.join("absent.sock").display().to_string();
    let meminfo = machine
        .directory
        .join("absent.meminfo")
        .display()
        .to_string();
    let config = machine.file("good.toml", &machine.configuration());
    let elsewhere = machine.directory.join("no/bpffs").display().to_string();
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["status", "--control-socket", &socket],
            &["no manager answers", &socket],
        ),
        (
            &[
                "agent",
                "--manager",
                "192.168.56.101",
                "--name",
                "w",
                "--memory-file",
                &meminfo,
            ],
            &["--memory-file", &meminfo],
        ),
        (
            &["manager", "--config", &config, "--pin-path", &elsewhere],
            &[&elsewhere, "BPF file system", "/sys/fs/bpf"],
        ),
        (
            &["manager", "--config", &config, "--pin-path", "/sys/fs/bpf"],
            &["whole BPF file system", "below"],
        ),
        (
            &[
                "manager",
                "--config",
                &config,
                "--heartbeat-listen",
                "192.0.2.1:9999",
            ],
            &["192.0.2.1:9999", "does not have that address"],
        ),
        (&["top"], &["needs a terminal", "memlb status"]),
    ];
    for (arguments, says) in cases {
        assert_failure(&machine.run(arguments), RUN_TIME, says);
        machine.assert_untouched();
    }
    assert!(
        !machine.directory.join("no").exists(),
        "a directory is left"
    );
}

#[root_test]
fn names_a_limit_of_open_files_that_is_too_low() {
    let machine = Machine::new();
    let config = machine.file("good.toml", &machine.configuration());
    let pins = machine.pins.display().to_string();
    let limited = format!(
        "ulimit -n 255; exec {} manager --config {config} --pin-path {pins}",
        machine.program.display()
    );
    let manager = &machine.topology.manager;
    let refused = manager
        .command("sh")
        .args(["-c", &limited])
        .output()
        .unwrap();
    assert_failure(
        &refused,
        RUN_TIME,
        &["256 files", "ulimit -n 256", "LimitNOFILE="],
    );
    machine.assert_untouched();
}

#[root_test]
fn removes_only_its_own_directory() {
    let machine = Machine::new();
    let precious = machine.directory.join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "of somebody").unwrap();
    let path = precious.display().to_string();
    let refused = machine.run(&["unload", "--pin-path", &path]);
    assert_failure(&refused, RUN_TIME, &[&path, "BPF file system"]);
    assert!(precious.join("file").exists());
}

#[root_test]
fn names_missing_privileges() {
    let machine = Machine::new();
    let config = machine.file("good.toml", &machine.configuration());
    let pins = machine.pins.display().to_string();
    for arguments in [
        &["manager", "--config", &config, "--pin-path", &pins][..],
        &["unload", "--pin-path", &pins],
    ] {
        for privileges in ["-all", "+net_admin", "+bpf,+perfmon", "+net_admin,+bpf"] {
            let refused = machine.run_as_nobody(privileges, arguments);
            let says = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "root"];
            assert_failure(&refused, RUN_TIME, &says);
            machine.assert_untouched();
        }
    }
    // What needs none asks for none.
    let checked = machine.run_as_nobody("-all", &["check", &config]);
    assert!(checked.status.success());
}

/// A machine on which a manager could run, if it were told rightly.
struct Machine {
    topology: Topology,
    directory: PathBuf,
    pins: PathBuf,
    program: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let topology = Topology::create(Shape::OneArm, 0).unwrap();
        let name = unique_prefix();
        let name = name.trim_end_matches('-');
        let directory = env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        // Where everybody may run it.
        let program = directory.join("memlb");
        fs::copy(binary().unwrap(), &program).unwrap();
        for path in [&directory, &program] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self {
            topology,
            pins: Path::new("/sys/fs/bpf").join(name),
            directory,
            program,
        }
    }

    fn configuration(&self) -> String {
        let socket = self.directory.join("manager.sock").display().to_string();
        CONFIGURATION.replace("SOCKET", &socket)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn check(&self, text: &str) -> Output {
        self.run(&["check", &self.file("check.toml", text)])
    }

    fn manager(&self, arguments: &[&str]) -> Output {
        let pins = self.pins.display().to_string();
        self.run(&[&["manager", "--pin-path", &pins], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.topology.manager.command("timeout");
        command.arg("20").arg(&self.program).args(arguments);
        self.end(command)
    }

    fn run_as_nobody(&self, privileges: &str, arguments: &[&str]) -> Output {
        let mut command = self.topology.manager.command("timeout");
        command
            .args(["20", "setpriv", "--reuid=65534", "--regid=65534"])
            .arg("--clear-groups")
            .arg(format!("--inh-caps={privileges}"))
            .arg(format!("--ambient-caps={privileges}"))
            .arg(&self.program)
            .args(arguments);
        self.end(command)
    }

    fn end(&self, mut command: Command) -> Output {
        let begun = Instant::now();
        let output = command.current_dir(&self.directory).output().unwrap();
        println!("{command:?}: {} in {:?}", output.status, begun.elapsed());
        output
    }

    fn assert_untouched(&self) {
        assert!(!self.pins.exists(), "pins are left");
        let net = self
            .topology
            .manager
            .run("bpftool", &["-j", "net"])
            .unwrap();
        let net: serde_json::Value = serde_json::from_str(&net).unwrap();
        for hook in ["xdp", "tc"] {
            assert_eq!(net[0][hook].as_array().unwrap().len(), 0);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for directory in [&self.pins, &self.directory] {
            if directory.exists()
                && let Err(error) = fs::remove_dir_all(directory)
            {
                eprintln!("{error}");
            }
        }
    }
}
