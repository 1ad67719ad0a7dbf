//! How a command is tested.

use super::location::Location;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It ends by itself, with success.
    Ends,
    /// It goes on until Ctrl-C, and shows this meanwhile.
    GoesOn { shows: &'static str },
    /// It is not run here.
    NotHere { because: &'static str },
}

/// Commands that are not run, by their first words, and why.
pub const NOT_RUN: &[(&str, &str)] = &[
    ("cargo xtask test", "this is a part of it"),
    (
        "cargo xtask lab demo",
        "takes a minute, and is a step of `cargo xtask test`",
    ),
    (
        "cargo xtask lab pair",
        "the laboratory of the other commands has its place",
    ),
    (
        "cargo xtask package",
        "builds for minutes, and is a step of `cargo xtask test`",
    ),
    ("git clone", "where the repository is, its reader knows"),
    (
        "cargo test",
        "builds for minutes, and `cargo xtask test` does the same",
    ),
    (
        "sudo env MEMLB_",
        "needs the name of what `cargo test --no-run` has built",
    ),
    ("ssh ", "needs another machine"),
    ("memlb handover ", "needs a peer, as tests/pair has it"),
    ("journalctl ", "needs the journal of systemd"),
    ("memlb-migrate ", "needs a hypervisor"),
    ("podman-move ", "needs Podman, CRIU and another machine"),
];

const WITH_OTHER_TESTS: &str = "`cargo xtask package --check` runs it on machines that boot";
const WITH_PAIR: &str = "tests/pair does the same with two managers";
const WITH_VIRTUALBOX: &str = "needs VirtualBox";

pub fn treatment_of(location: Location, command: &str) -> Treatment {
    let because = match location {
        Location::Machines => Some(WITH_OTHER_TESTS),
        Location::Pair => Some(WITH_PAIR),
        Location::VirtualBox => Some(WITH_VIRTUALBOX),
        _ => why_not_here(command),
    };
    if let Some(because) = because {
        return Treatment::NotHere { because };
    }
    shown_by(command).map_or(Treatment::Ends, |shows| Treatment::GoesOn { shows })
}

fn why_not_here(command: &str) -> Option<&'static str> {
    let mut not_run = NOT_RUN.iter();
    let (_, because) = not_run.find(|(words, _)| command.starts_with(words))?;
    Some(because)
}

/// Returns what a command shows that goes on until Ctrl-C.
fn shown_by(command: &str) -> Option<&'static str> {
    let typed = command.split(" #").next().unwrap_or_default();
    let words: Vec<&str> = typed.split_whitespace().collect();
    match words[..] {
        ["memlb", "agent", ..] => Some("sent "),
        ["memlb", "manager", ..] => Some("ready: web"),
        ["memlb", "trace", ..] if words.contains(&"--json") => Some("begun"),
        ["memlb", "trace", ..] => Some("tracing;"),
        ["memlb", "top", ..] => Some("worker1"),
        ["memlb", "events", "--follow", ..] => Some("worker1"),
        ["curl", "-sN", ..] => Some(": listening"),
        ["cargo", "xtask", "lab"] => Some("Worker1"),
        _ => None,
    }
}
