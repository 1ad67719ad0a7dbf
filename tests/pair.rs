//! Two managers with a real keepalived: what clients notice when a machine dies.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    command::output,
    namespace::{Namespace, unique_prefix},
    pair::{Pair, PairOptions, Turnover},
    root_test,
};

const SOON: Duration = Duration::from_secs(10);
/// What is allowed, and what a machine that does other work at the same time adds.
const TAKE_OVER: Duration = Duration::from_millis(500);
const ROOM: Duration = Duration::from_millis(400);

#[root_test]
fn the_other_machine_takes_over() {
    let pair = Pair::start(&PairOptions::default()).unwrap();
    pair.wait_until_active(0, SOON).unwrap();
    let turnover = Turnover::start(&pair.network.client, 100).unwrap();
    thread::sleep(Duration::from_secs(1));
    pair.network.cut_off(0).unwrap();
    let died = Instant::now();
    thread::sleep(Duration::from_secs(2));
    let first = turnover.finish().unwrap().first_answer_after(died).unwrap();
    println!("first answer after {first:?}");
    assert!(first <= TAKE_OVER + ROOM, "first answer after {first:?}");
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ha")
}

/// A folder for files that keepalived's user may read.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[root_test]
fn keepalived_finds_nothing_wrong_with_the_example() {
    let machine = Namespace::create(unique_prefix() + "keepalived").unwrap();
    let cable = [
        "link", "add", "eth1", "type", "veth", "peer", "name", "eth2",
    ];
    output(machine.ip().args(cable)).unwrap();
    let folder = folder();
    for (name, mode) in [
        ("keepalived.conf", 0o644),
        ("memlb-pair.conf", 0o644),
        ("memlb-notify", 0o755),
    ] {
        let text = fs::read_to_string(scripts().join(name)).unwrap();
        let here = folder.path().display().to_string();
        let file = folder.path().join(name);
        fs::write(&file, text.replace("/etc/keepalived", &here)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut keepalived = machine.command("keepalived");
    keepalived.args(["--config-test", "--use-file"]);
    let tested = keepalived
        .arg(folder.path().join("keepalived.conf"))
        .output()
        .unwrap();
    // Its exit status says nothing: 2.2.7 ends itself by a signal.
    let said = [tested.stdout, tested.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn changes_of_the_role_are_logged() {
    let folder = folder();
    let logger = folder.path().join("logger");
    fs::write(&logger, "#!/bin/sh\necho \"$@\"\n").unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let said = |arguments: &[&str]| {
        let mut script = Command::new("sh");
        script.arg(scripts().join("memlb-notify")).args(arguments);
        output(script.env("PATH", &path))
    };
    let active = said(&["INSTANCE", "memlb", "MASTER", "150"]).unwrap();
    assert!(active.contains("--priority daemon.warning"), "{active}");
    assert!(
        active.contains("memlb: this manager is active now"),
        "{active}"
    );
    let fault = said(&["INSTANCE", "memlb", "FAULT", "100"]).unwrap();
    assert!(
        fault.contains("daemon.err") && fault.contains("(priority 100)"),
        "{fault}"
    );
    said(&["INSTANCE"]).unwrap_err();
}
