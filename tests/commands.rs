//! The command line itself: what packages install of it, and what it says to a slip of the finger.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use memlb_tests::{cluster::binary, command::output};

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
        let page = fs::read_to_string(directory.0.join(format!("memlb-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{verb}");
    }
    let first = fs::read_to_string(directory.0.join("memlb.1")).unwrap();
    assert!(first.contains("Exit status"), "{first}");
}

#[test]
fn completions_are_scripts_that_their_shell_accepts() {
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
fn a_slip_of_the_finger_is_put_right() {
    let cases: [(&[&str], &str); 4] = [
        (&["stauts"], "'status'"),
        (&["drian", "worker1"], "'drain'"),
        (&["status", "--jsno"], "'--json'"),
        (&["completions", "bahs"], "'bash'"),
    ];
    for (arguments, says) in cases {
        let refused = memlb(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn a_closed_pipe_is_enough_and_a_full_disk_a_failure() {
    let mut command = Command::new(binary().unwrap());
    command.args(["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let failed = command.stdout(full).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("No space left"));
}

#[test]
fn without_a_manager_every_verb_says_so() {
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
        let said = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(
            said.contains("no manager answers at /nonexistent"),
            "{said}"
        );
    }
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
