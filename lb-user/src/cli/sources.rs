//! `memlb sources`: the sources of workers outside of the configuration file.

use std::path::PathBuf;

use memlb::{
    config::check_source,
    control::{Request, WorkersReply},
    membership::WorkerList,
    status::{Status, WorkerSource},
    worker_source,
};

use super::{
    error::{CliError, CliResult},
    remote::Remote,
    runtime::block_on,
};

/// Show the sources of workers outside of the configuration file, or give workers from a file
///
/// A service names in worker_sources which sources it takes workers from. Each source gives its whole list at once;
/// the manager adds, changes and removes what differs from the source's former list, and keeps the list over
/// restarts. Without a subcommand, shows the sources, their workers, and what is not a worker and why.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<SourcesVerb>,

    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Subcommand)]
enum SourcesVerb {
    Apply(ApplyArgs),
    Remove(RemoveSourceArgs),
}

/// Give the workers of a file to the manager, in place of those that this source gave before
///
/// The file has workers = [{ service = "web", name = "worker1", address = "192.168.56.103:8081" }, ...] in TOML, or
/// the same in JSON if its name ends in .json. A worker may have a weight ("50%"), and drain = "REASON", by which
/// it gets no new connection. The list is in force as a whole, or not at all.
#[derive(clap::Args)]
struct ApplyArgs {
    /// The file with the workers
    file: PathBuf,

    /// The source's name, which services name in worker_sources
    #[arg(long, value_name = "NAME", default_value = "file", value_parser = source_name)]
    source: String,

    /// Keep running, and give the workers again when the file changes; checks it every 500 ms
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    remote: Remote,
}

/// Remove a source with all of its workers; their open connections continue
#[derive(clap::Args)]
struct RemoveSourceArgs {
    /// The source's name
    source: String,

    #[command(flatten)]
    remote: Remote,
}

fn source_name(name: &str) -> Result<String, String> {
    check_source(name).map(|()| name.to_owned())
}

pub fn run(args: Args) -> CliResult {
    match args.verb {
        None => show(&args.remote),
        Some(SourcesVerb::Apply(args)) => apply(args),
        Some(SourcesVerb::Remove(RemoveSourceArgs { source, remote })) => {
            let reply: WorkersReply = remote.request(&Request::RemoveSource { source })?;
            remote.print(&reply, changes_text)
        }
    }
}

fn show(remote: &Remote) -> CliResult {
    let status: Status = remote.request(&Request::Status)?;
    remote.print(&status.sources, |sources| match sources.is_empty() {
        true => "no source has given workers\n".to_owned(),
        false => sources.iter().map(WorkerSource::to_string).collect(),
    })
}

fn apply(args: ApplyArgs) -> CliResult {
    let source = worker_source::SourceClient::new(args.remote.client(), args.source, false);
    if args.watch {
        return block_on(async {
            worker_source::watch(source, &args.file).await;
            Ok(())
        });
    }
    let list: WorkerList = worker_source::read(&args.file).map_err(CliError::Usage)?;
    let reply = block_on(source.send(list))?;
    args.remote.print(&reply, changes_text)
}

fn changes_text(reply: &WorkersReply) -> String {
    let lists = [
        ("added", &reply.changes.added),
        ("changed", &reply.changes.changed),
        ("removed", &reply.changes.removed),
    ];
    let lines = lists.iter().flat_map(|(verb, names)| {
        let lines = names.iter().map(move |name| format!("{verb} {name}\n"));
        lines.collect::<Vec<_>>()
    });
    let mut text: String = lines.collect();
    if reply.changes.is_empty() {
        text += "nothing has changed\n";
    }
    for absent in &reply.absent {
        text += &format!("not a worker: {absent}\n");
    }
    if let Some(problem) = &reply.not_saved {
        text += &format!("warning: the workers are lost at a restart of the manager: {problem}\n");
    }
    text
}
