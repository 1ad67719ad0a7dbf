//! The files that `scripts/ha` has for keepalived.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use memlb_tests::{
    command::output,
    namespace::{Namespace, unique_prefix},
    root_test,
};

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
fn keepalived_accepts_the_example() {
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
    assert!(active.contains("memlb: this manager is active"), "{active}");
    let fault = said(&["INSTANCE", "memlb", "FAULT", "100"]).unwrap();
    assert!(
        fault.contains("daemon.err") && fault.contains("(priority 100)"),
        "{fault}"
    );
    said(&["INSTANCE"]).unwrap_err();
}
