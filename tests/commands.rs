//! The command line: manual pages, completions, suggestions, errors.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use memlb_tests::{cli::assert_failure, cluster::binary, command::output};

fn memlb(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary().unwrap());
    command.args(arguments).output().unwrap()
}

/// The verbs that the help names.
fn verbs() -> Vec<String> {
    let help = String::from_utf8(memlb(&["--help"]).stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_has_a_manual_page() {
    let directory = Scratch::new("man");
    let made = memlb(&["man", &directory.0.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
    let verbs = verbs();
    assert!(verbs.len() > 10, "{verbs:?}");
    for verb in verbs {
        let page = fs::read_to_string(directory.0.join(format!("man1/memlb-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{verb}");
    }
    let first = fs::read_to_string(directory.0.join("man1/memlb.1")).unwrap();
    assert!(first.contains("Exit status"), "{first}");
    let file = fs::read_to_string(directory.0.join("man5/memlb.toml.5")).unwrap();
    assert!(file.contains("down_after"), "{file}");
}

#[test]
fn shells_accept_their_completions() {
    let directory = Scratch::new("completions");
    for shell in ["bash", "zsh", "fish"] {
        let script = memlb(&["completions", shell]);
        assert!(script.status.success(), "{script:?}");
        let text = String::from_utf8(script.stdout).unwrap();
        for verb in verbs() {
            assert!(text.contains(&verb), "{shell} does not know {verb}");
        }
        let file = directory.0.join(shell);
        fs::write(&file, text).unwrap();
        if shell == "bash" {
            output(Command::new("bash").arg("-n").arg(&file)).unwrap();
        }
    }
}

#[test]
fn a_misspelled_command_gets_a_suggestion() {
    let cases: [(&[&str], &str); 4] = [
        (&["stauts"], "'status'"),
        (&["drian", "worker1"], "'drain'"),
        (&["status", "--jsno"], "'--json'"),
        (&["completions", "bahs"], "'bash'"),
    ];
    for (arguments, says) in cases {
        assert_failure(&memlb(arguments), 2, &[says]);
    }
}

#[test]
fn a_closed_pipe_is_success_and_a_full_disk_a_failure() {
    let mut command = Command::new(binary().unwrap());
    command.args(["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());

    let directory = Scratch::new("full");
    let file = directory.0.join("memlb.toml");
    let example = memlb(&["check", "--example"]).stdout;
    fs::write(&file, example).unwrap();
    let file = file.display().to_string();
    let printing: [&[&str]; 3] = [
        &["completions", "zsh"],
        &["check", "--example"],
        &["check", &file],
    ];
    for arguments in printing {
        let mut command = Command::new(binary().unwrap());
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let failed = command.args(arguments).stdout(full).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        let said = String::from_utf8_lossy(&failed.stderr);
        assert!(
            said.contains("No space left") && !said.contains("panicked"),
            "{said}"
        );
    }
}

#[test]
fn check_reads_the_keys_of_this_machine() {
    let directory = Scratch::new("keys");
    let keys = directory.0.join("keys");
    let file = directory.0.join("memlb.toml");
    let example = String::from_utf8(memlb(&["check", "--example"]).stdout).unwrap();
    let text = example
        .replace("authentication = \"off\"", "authentication = \"enforce\"")
        .replace("/etc/memlb/keys", &keys.display().to_string());
    fs::write(&file, text).unwrap();
    let check = || {
        let checked = memlb(&["check", &file.display().to_string()]);
        assert!(checked.status.success(), "{checked:?}");
        let warnings = String::from_utf8(checked.stderr).unwrap();
        let verdict = String::from_utf8(checked.stdout).unwrap();
        assert_eq!(verdict.contains("fine"), warnings.is_empty(), "{verdict}");
        warnings
    };
    let keygen = |name: &str| {
        let key = keys.join(format!("{name}.key")).display().to_string();
        let made = memlb(&["keygen", "--name", name, "--output", &key]);
        assert!(made.status.success(), "{made:?}");
        (key, String::from_utf8(made.stdout).unwrap())
    };

    let absent = check();
    assert!(
        absent.contains("the manager would not start here: read the keys at"),
        "{absent}"
    );
    assert!(
        absent.contains("No such file or directory (os error 2); create the directory"),
        "{absent}"
    );

    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
    let (key, _) = keygen("worker1");
    let stray = keys.join("worker2.key~");
    fs::copy(&key, &stray).unwrap();
    let without = check();
    for part in ["there is no key of worker2 at", "not read as keys in"] {
        assert!(without.contains(part), "{part}: {without}");
    }
    fs::remove_file(stray).unwrap();
    keygen("worker2");
    assert_eq!(check(), "");

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = check();
    assert!(
        open.contains("can be used by others than its owner"),
        "{open}"
    );
}

#[test]
fn the_managers_of_a_pair_have_one_key_and_equal_settings() {
    let directory = Scratch::new("pair");
    let at = |name: &str| directory.0.join(name).display().to_string();
    let made = memlb(&["keygen", "--peer", "--output", &at("peer.key")]);
    let said = String::from_utf8(made.stdout).unwrap();
    assert!(said.contains("both managers need the same file"), "{said}");
    let neither = memlb(&["keygen", "--peer", "--name", "worker1"]);
    assert_eq!(neither.status.code(), Some(2), "{neither:?}");

    let example = String::from_utf8(memlb(&["check", "--example"]).stdout).unwrap();
    let write = |number: u8, key: &str| {
        let other = 3 - number;
        let text = example
            .replace(
                "nat_sources = []",
                &format!("nat_sources = [\"192.168.56.2{number}\"]"),
            )
            .replace(
                "peer_listen = \"\"",
                &format!("peer_listen = \"10.0.9.{number}:9997\""),
            )
            .replace("#[[peer]]", "[[peer]]")
            .replace(
                "#name = \"manager2\"",
                &format!("name = \"manager{other}\""),
            )
            .replace(
                "#address = \"10.0.9.2:9997\"",
                &format!("address = \"10.0.9.{other}:9997\""),
            )
            .replace(
                "#key = \"/etc/memlb/peer.key\"",
                &format!("key = \"{key}\""),
            );
        let file = at(&format!("manager{number}.toml"));
        fs::write(&file, text).unwrap();
        file
    };
    let files = [write(1, &at("peer.key")), write(2, &at("none.key"))];
    let shared = files
        .each_ref()
        .map(|it| memlb(&["check", "--shared", it]).stdout);
    assert_eq!(shared[0], shared[1]);
    let shared = String::from_utf8_lossy(&shared[0]);
    assert!(
        shared.contains("# digest ") && shared.contains("worker2"),
        "{shared}"
    );
    assert!(!shared.contains("10.0.9"), "{shared}");

    let checked = files.each_ref().map(|it| memlb(&["check", it]));
    let verdict = String::from_utf8_lossy(&checked[0].stdout);
    assert!(verdict.contains("1 peer"), "{verdict}");
    let warnings = checked
        .each_ref()
        .map(|it| String::from_utf8_lossy(&it.stderr).into_owned());
    assert!(!warnings[0].contains("peer.key"), "{warnings:?}");
    assert!(warnings[1].contains("none.key"), "{warnings:?}");
}

#[test]
fn a_weight_is_given_with_or_without_a_percent_sign() {
    for percent in ["50", "50%"] {
        let failed = memlb(&[
            "weight",
            "worker1",
            percent,
            "--control-socket",
            "/nonexistent/x",
        ]);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    }
    let refused = memlb(&["weight", "worker1", "half"]);
    assert_failure(&refused, 2, &["such as 50 or 50%"]);
}

#[test]
fn an_invalid_reason_is_refused_and_not_printed() {
    let long = "r".repeat(5000);
    for (reason, says) in [
        (long.as_str(), "5000 bytes: expected at most 1000"),
        ("a\x1b[31mred\nb", "control characters"),
    ] {
        let refused = memlb(&["drain", "worker1", "--reason", reason]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(says) && !said.contains(reason), "{said}");
    }
}

#[test]
fn every_verb_reports_a_missing_manager() {
    let verbs: [&[&str]; 9] = [
        &["status"],
        &["services"],
        &["workers"],
        &["flows"],
        &["events"],
        &["trace"],
        &["reload"],
        &["drain", "worker1"],
        &["explain", "10.0.0.1"],
    ];
    for verb in verbs {
        let mut arguments = verb.to_vec();
        arguments.extend(["--control-socket", "/nonexistent/manager.sock"]);
        let failed = memlb(&arguments);
        arguments.push("--json");
        let json = error_as_json(&memlb(&arguments), 1);
        let said = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(
            said,
            format!("memlb: {}\n", json["error"].as_str().unwrap())
        );
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(
            said.contains("no manager answers at /nonexistent"),
            "{said}"
        );
    }
}

/// Returns the error that a verb with `--json` printed.
fn error_as_json(failed: &Output, status: i32) -> serde_json::Value {
    assert_eq!(failed.status.code(), Some(status), "{failed:?}");
    let json: serde_json::Value = serde_json::from_slice(&failed.stderr).unwrap();
    assert_eq!(json["exit_status"], status);
    json
}

#[test]
fn errors_are_json_with_the_json_option() {
    let usage = error_as_json(&memlb(&["drain", "--json"]), 2);
    assert!(
        usage["error"].as_str().unwrap().contains("<WORKER>"),
        "{usage}"
    );

    let directory = Scratch::new("mistakes");
    let file = directory.0.join("memlb.toml");
    let example = String::from_utf8(memlb(&["check", "--example"]).stdout).unwrap();
    let text = example
        .replace("up_after = 2", "up_after = two")
        .replace("\"1500ms\"", "\"soon\"");
    fs::write(&file, text).unwrap();
    let json = error_as_json(&memlb(&["check", "--json", &file.display().to_string()]), 2);
    let problems = json["problems"].as_array().unwrap();
    let kinds: Vec<_> = problems
        .iter()
        .map(|it| it["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["syntax", "bad_duration"], "{json}");

    fs::write(&file, example).unwrap();
    let checked = memlb(&["check", &file.display().to_string()]);
    let warned = String::from_utf8(checked.stderr).unwrap();
    assert!(warned.contains("authentication is \"off\""), "{warned}");
    let summary = String::from_utf8(checked.stdout).unwrap();
    assert!(summary.contains("1 service with 2 backends"), "{summary}");
}

/// A directory of this test's own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let process = std::process::id();
        let directory = env::temp_dir().join(format!("memlb-commands-{process}-{name}"));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
