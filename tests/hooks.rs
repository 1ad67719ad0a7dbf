//! The hooks for migrations: they pause a worker before it moves, and resume it afterwards.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A host with programs that only write down how they are called.
struct Host {
    programs: TempDir,
}

impl Host {
    /// Makes `memlb pause` end with `pause`, and all the rest with success.
    fn new(pause: u8) -> Self {
        let programs = tempfile::tempdir().unwrap();
        let host = Self { programs };
        for name in ["memlb", "ssh", "scp", "podman", "qm"] {
            let script = format!(
                "#!/bin/sh\necho {name} \"$@\" >>\"$CALLS\"\ncase \"{name} $*\" in *'memlb pause'*) exit {pause} ;; esac\n"
            );
            let program = host.programs.path().join(name);
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        host
    }

    /// Runs a hook. Returns whether it succeeded, and what it has called.
    fn run(&self, hook: &str, arguments: &[&str], managers: &str) -> (bool, Vec<String>) {
        let path = env::var_os("PATH").unwrap();
        let places = [self.programs.path().into()].into_iter();
        let path = env::join_paths(places.chain(env::split_paths(&path))).unwrap();
        let calls = self.calls();
        fs::write(&calls, "").unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let status = Command::new(root.join("scripts/migration").join(hook))
            .args(arguments)
            .env("PATH", path)
            .env("CALLS", &calls)
            .env("MEMLB_MANAGERS", managers)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        let called = fs::read_to_string(calls).unwrap();
        let called = called.lines().map(|line| {
            let options = "-o BatchMode=yes -o ConnectTimeout=5 ";
            line.replace(options, "")
        });
        (status.success(), called.collect())
    }

    fn calls(&self) -> PathBuf {
        self.programs.path().join("calls")
    }
}

const MIGRATE: [&str; 6] = ["worker1", "2m", "qm", "migrate", "103", "host2"];

#[test]
fn pauses_at_every_manager_moves_and_resumes() {
    let host = Host::new(0);
    let (succeeded, called) = host.run("memlb-migrate", &MIGRATE, "m1 m2");
    let expected = [
        "ssh root@m1 memlb pause worker1 --for 2m --reason migration",
        "ssh root@m2 memlb pause worker1 --for 2m --reason migration",
        "qm migrate 103 host2",
        "ssh root@m1 memlb resume worker1",
        "ssh root@m2 memlb resume worker1",
    ];
    assert!(succeeded);
    assert_eq!(called, expected);
    let (_, called) = host.run("memlb-migrate", &MIGRATE, "");
    assert_eq!(called[0], "memlb pause worker1 --for 2m --reason migration");
}

#[test]
fn does_not_move_what_cannot_be_paused() {
    let host = Host::new(1);
    let (succeeded, called) = host.run("memlb-migrate", &MIGRATE, "");
    assert!(!succeeded);
    assert_eq!(called.len(), 1, "{called:?}");
}

#[test]
fn resumes_after_a_migration_that_failed() {
    let host = Host::new(0);
    let (succeeded, called) = host.run("memlb-migrate", &["worker1", "2m", "false"], "");
    assert!(!succeeded);
    assert_eq!(called[1], "memlb resume worker1");
}

#[test]
fn moves_a_container_with_its_connections() {
    let host = Host::new(0);
    let (succeeded, called) = host.run("podman-move", &["web", "worker1", "host2"], "m1");
    assert!(succeeded);
    let begins = [
        "ssh root@m1 memlb pause worker1",
        "podman container checkpoint --tcp-established",
        "scp ",
        "ssh root@host2 podman container restore --tcp-established",
    ];
    for (called, begins) in called.iter().zip(begins) {
        assert!(called.starts_with(begins), "{called}");
    }
    assert_eq!(called.last().unwrap(), "ssh root@m1 memlb resume worker1");
}
