//! `memlb events`: what has happened, and what happens.

use anyhow::Context;
use memlb::{control::Request, event_stream::EventRecord};

use super::{CliResult, block_on, print, remote::Remote};

/// Show the last events: decisions with their reasons, workers' states, orders
///
/// The manager keeps the last 256. The event log has more, and samples of heartbeats.
#[derive(clap::Args)]
pub struct Args {
    /// Then show new events until interrupted
    #[arg(long, short)]
    follow: bool,

    /// Show only the last COUNT events
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<usize>,

    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: &Args) -> CliResult {
    Ok(block_on(show(args))?)
}

async fn show(args: &Args) -> anyhow::Result<()> {
    let request = Request::Events {
        limit: args.limit,
        follow: args.follow,
    };
    let mut lines = args.remote.client().stream(&request).await?;
    while let Some(line) = lines.next_line().await.context("wait for events")? {
        if args.remote.json {
            print(&format!("{line}\n"));
            continue;
        }
        let entry: EventRecord = memlb::control::parse_reply(&line)?;
        let severity = match entry.severity {
            lb_core::Severity::Info => "",
            lb_core::Severity::Warn => "warning: ",
        };
        print(&format!("{}  {severity}{}\n", entry.time, entry.message));
    }
    anyhow::ensure!(!args.follow, "the manager has gone");
    Ok(())
}
