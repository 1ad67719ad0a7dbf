//! `memlb keygen`: a new key for a worker, or for managers that are peers.

use std::path::{Path, PathBuf};

use memlb::{
    config::HeartbeatSettings,
    heartbeat::check_name,
    keys::{self, AGENT_KEY, APPLY_KEYS, KeyId, PEER_KEY, apply_keys_here},
    processes::Unit,
};
use serde::Serialize;

use super::{
    error::{CliError, CliResult},
    output::{print, print_json},
    terminal::Output,
};

/// Make a key with which a worker signs its heartbeats, or managers authenticate each other, and write it to a new file
#[derive(clap::Args)]
pub struct Args {
    /// The worker that the key authenticates
    #[arg(long, required_unless_present = "peer")]
    name: Option<String>,

    /// Make a key for managers that are peers of each other, see [[peer]] in the configuration
    #[arg(long, conflicts_with = "name")]
    peer: bool,

    /// The file to write [default: NAME.key, or peer.key]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The new key without its secret, as `--json` prints it.
#[derive(Serialize)]
struct GeneratedKey<'a> {
    /// Absent for a key of managers.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    key: String,
    file: &'a Path,
}

pub fn run(args: &Args) -> CliResult {
    let name = args.name.as_deref();
    if let Some(name) = name
        && let Err(problem) = check_name(name)
    {
        let text = format!("--name {name:?} cannot name a worker: {problem}");
        return Err(CliError::usage(text));
    }
    let path = match &args.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{}.key", name.unwrap_or("peer"))),
    };
    let id = match name {
        Some(name) => keys::write_new(&path, name)?,
        None => keys::write_new_peer(&path)?,
    };
    if args.json {
        return print_json(&GeneratedKey {
            worker: name,
            key: id.to_string(),
            file: &path,
        });
    }
    let advice = match name {
        Some(name) => advice(&path, name, id, &HeartbeatSettings::default().keys),
        None => advice_for_peers(&path, id),
    };
    print(&wrapped(&advice, Output::stdout()));
    Ok(())
}

/// Wraps the sentences. A command is not wrapped, so that it can be copied.
fn wrapped(advice: &str, output: Output) -> String {
    let line = |line: &str| match line.starts_with(' ') {
        true => format!("{line}\n"),
        false => output.wrap_lines(line),
    };
    advice.lines().map(line).collect()
}

/// Says where each of the managers needs the key.
fn advice_for_peers(path: &Path, id: KeyId) -> String {
    let file = path.display();
    let is_in_place = is_in(path, Path::new("/etc/memlb")) && path.ends_with("peer.key");
    let (here, install) = match is_in_place {
        true => (", where it is already", String::new()),
        false => ("", format!("    install -D -m 600 {file} {PEER_KEY}\n")),
    };
    let (copy, restart) = (copy_of(path), Unit::Manager.restart("restart the manager"));
    format!(
        "{file}: key {id} of managers. Keep it secret; both managers need the same file.
on this manager, with a [[peer]] table in its configuration{here}:
{install}    {restart}
on the peer, with a copy of the file:
    install -D -m 600 {copy} {PEER_KEY}
    restart the manager    (with the package's service: systemctl restart memlb-manager)
To replace an older key without a gap, let both files hold two lines, the older key first; restart both managers; put \
the new line first on both, and restart them; then remove the older line.
"
    )
}

/// Says where manager and worker need the key.
fn advice(path: &Path, name: &str, id: KeyId, keys: &Path) -> String {
    let (file, keys_directory) = (path.display(), keys.display());
    let is_managers = is_in(path, keys) && path.extension().is_some_and(|it| it == "key");
    let is_agents = is_in(path, Path::new("/etc/memlb")) && path.ends_with("agent.key");
    let here = ", where it is already if that is here";
    let copy = match is_managers || is_agents {
        true => copy_of(path),
        false => path.display(),
    };
    let (managers, to_manager, take_up) = match is_managers {
        true => (here, String::new(), apply_keys_here()),
        false => (
            "",
            format!("    install -D -m 600 {copy} {keys_directory}/{name}-{id}.key\n"),
            APPLY_KEYS.to_owned(),
        ),
    };
    let by_hand = format!("memlb agent --manager MANAGER --name {name} --key {AGENT_KEY}");
    let (workers, to_worker, start) = match is_agents {
        true => (here, String::new(), Unit::Agent.restart(&by_hand)),
        false => (
            "",
            format!("    install -D -m 600 {copy} {AGENT_KEY}\n"),
            format!("{by_hand}    (with the package's service: systemctl restart memlb-agent)"),
        ),
    };
    format!(
        "{file}: key {id} of {name}. Keep it secret; it is needed in two places, in one as a copy:
on the manager (heartbeats.keys in its configuration){managers}:
{to_manager}    {take_up}
on {name}{workers}:
{to_worker}    {start}
To replace an older key, install this one on the manager first, then on {name}; then remove the older \
one from the manager.
"
    )
}

/// The file's name at its destination.
fn copy_of(path: &Path) -> std::path::Display<'_> {
    Path::new(path.file_name().unwrap_or_default()).display()
}

/// Whether the file is in that directory, also if their paths are written differently.
fn is_in(file: &Path, directory: &Path) -> bool {
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match (parent.canonicalize(), directory.canonicalize()) {
        (Ok(parent), Ok(directory)) => parent == directory,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn instructions_omit_a_copy_to_the_same_place() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        fs::create_dir(&keys).unwrap();
        let advice = |path: &Path| advice(path, "worker1", KeyId(10), &keys);

        let managers = keys.join("../keys/worker1.key");
        let said = advice(&managers);
        assert!(!said.contains("0000000a.key"), "{said}");
        assert!(
            said.contains(
                "on the manager (heartbeats.keys in its configuration), where it is already"
            ),
            "{said}"
        );
        assert!(
            said.contains("install -D -m 600 worker1.key /etc/memlb/agent.key"),
            "{said}"
        );
        assert!(said.contains("memlb reload"), "{said}");
        // A manager on this machine is run in one way.
        assert!(
            !said.contains("(with the package's service: systemctl restart memlb-manager"),
            "{said}"
        );
        let agents = "(with the package's service: systemctl restart memlb-agent)";
        assert!(said.contains(agents), "{said}");

        let elsewhere = directory.path().join("worker1.key");
        for path in [elsewhere, keys.join("worker1")] {
            let said = advice(&path);
            let installed = format!(
                "install -D -m 600 {} {}/worker1-0000000a.key",
                path.display(),
                keys.display()
            );
            assert!(said.contains(&installed), "{said}");
            let installed = format!("install -D -m 600 {} /etc/memlb/agent.key", path.display());
            assert!(said.contains(&installed), "{said}");
        }
    }

    #[test]
    fn sentences_fit_the_terminal() {
        let output = Output {
            width: Some(80),
            has_color: false,
        };
        let path = Path::new("peer.key");
        let said = wrapped(&advice_for_peers(path, KeyId(10)), output);
        let command = "    install -D -m 600 peer.key /etc/memlb/peer.key\n";
        assert!(said.contains(command), "{said}");
        let sentences = said.lines().filter(|it| !it.starts_with("    "));
        assert!(sentences.clone().count() > 4, "{said}");
        sentences.for_each(|it| assert!(it.len() <= 80, "{it}"));
    }
}
