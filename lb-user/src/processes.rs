//! The memlb processes of this machine, and whether systemd runs them, for the remedies in messages.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path};

use procfs::process::{Process, all_processes};

use crate::sockets::{Holder, holder};

/// A process that runs a verb of memlb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemlbProcess {
    pub holder: Holder,
    /// The command line; the program comes first.
    pub arguments: Vec<String>,
    /// Whether it runs in this process's network namespace.
    pub is_in_this_network: bool,
}

/// Finds the processes that run `memlb VERB`, as far as this user may see them.
pub fn of_verb(verb: &str) -> Vec<MemlbProcess> {
    let own = network("self");
    let processes = all_processes().into_iter().flatten().flatten();
    let found = processes.filter_map(|process| {
        let arguments = process.cmdline().ok()?;
        let program = Path::new(arguments.first()?).file_name()?;
        let is_of_verb = program == "memlb" && arguments.iter().any(|it| it == verb);
        // A process that ends, or that this user may not examine, has no known network.
        let network = (is_of_verb && process.is_alive())
            .then(|| network(&process.pid.to_string()))
            .flatten()?;
        Some(MemlbProcess {
            holder: holder(process.pid)?,
            arguments,
            is_in_this_network: Some(network) == own,
        })
    });
    found.collect()
}

/// Returns those of the programs that run in this network namespace.
pub fn running(programs: &[&'static str]) -> Vec<&'static str> {
    let own = network("self");
    let processes = all_processes().into_iter().flatten().flatten();
    let found: BTreeSet<String> = processes
        .filter(|it| network(&it.pid.to_string()) == own && it.is_alive())
        .filter_map(|it| Some(it.stat().ok()?.comm))
        .collect();
    let programs = programs.iter().copied();
    programs.filter(|it| found.contains(*it)).collect()
}

/// Returns the identity of a process's network namespace: device and inode.
fn network(process: &str) -> Option<(u64, u64)> {
    let metadata = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A systemd unit of the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Manager,
    Agent,
}

impl Unit {
    fn verb(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Agent => "agent",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "memlb-manager",
            Self::Agent => "memlb-agent",
        }
    }

    /// Whether systemd runs it on this machine, or would if it is not running.
    pub fn is_in_use(self) -> bool {
        let unit = format!("{}.service", self.name());
        let running = of_verb(self.verb());
        let mut here = running.iter().filter(|it| it.is_in_this_network).peekable();
        if here.peek().is_some() {
            return here.any(|it| is_of_unit(it.holder.pid, &unit));
        }
        let is_booted = Path::new("/run/systemd/system").exists();
        let folders = ["/etc/systemd/system", "/usr/lib/systemd/system"];
        is_booted && folders.iter().any(|it| Path::new(it).join(&unit).exists())
    }

    /// Returns the command that starts it on this machine; without systemd it is `by_hand`.
    pub fn start(self, by_hand: &str) -> String {
        self.command("start", by_hand)
    }

    /// Returns the command that restarts it on this machine; without systemd it is `by_hand`.
    pub fn restart(self, by_hand: &str) -> String {
        self.command("restart", by_hand)
    }

    fn command(self, verb: &str, by_hand: &str) -> String {
        match self.is_in_use() {
            true => format!("systemctl {verb} {}", self.name()),
            false => by_hand.to_owned(),
        }
    }
}

fn is_of_unit(pid: i32, unit: &str) -> bool {
    let groups = Process::new(pid).and_then(|process| process.cgroups());
    let mut groups = groups.into_iter().flat_map(|it| it.0);
    groups.any(|it| it.pathname.split('/').any(|part| part == unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_no_memlb_is_not_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut agents = of_verb("agent").into_iter();
        assert!(agents.all(|it| it.holder.pid != own));
        assert!(!is_of_unit(own, "memlb-agent.service"));
    }
}
