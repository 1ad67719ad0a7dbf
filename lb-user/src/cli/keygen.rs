//! `memlb keygen`: a new key for a worker.

use std::path::{Path, PathBuf};

use memlb::{heartbeat::check_name, keys};
use serde::Serialize;

use super::{Failure, Outcome, print_json};

/// Draw a key with which a worker signs its heartbeats, and write it to a new file
#[derive(clap::Args)]
pub struct Args {
    /// The worker for which alone the key will speak
    #[arg(long)]
    name: String,

    /// The file to make [default: NAME.key]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was made, as `--json` prints it; nothing that is secret.
#[derive(Serialize)]
struct Made<'a> {
    worker: &'a str,
    key: String,
    file: &'a Path,
}

pub fn run(args: &Args) -> Outcome {
    let Args { name, output, json } = args;
    if let Err(problem) = check_name(name) {
        return Err(Failure::Usage(anyhow::anyhow!(
            "--name {name:?} cannot name a worker: {problem}"
        )));
    }
    let path = match output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{name}.key")),
    };
    let id = keys::write_new(&path, name)?;
    if *json {
        return print_json(&Made {
            worker: name,
            key: id.to_string(),
            file: &path,
        });
    }
    let file = path.display();
    println!(
        "{file}: key {id} of {name}. Keep it secret; it is needed in two places:
on the manager (heartbeats.keys in its configuration; read at the start and at a reload):
    install -D -m 600 {file} /etc/memlb/keys/{name}-{id}.key
on {name}:
    install -D -m 600 {file} /etc/memlb/agent.key
    memlb agent --manager MANAGER --name {name} --key /etc/memlb/agent.key
To replace an older key, install this one on the manager first, then on {name}; then remove the older
one from the manager."
    );
    Ok(())
}
