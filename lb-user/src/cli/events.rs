//! `memlb events`: past and new events.

use anyhow::Context;
use lb_core::Severity;
use memlb::{
    control::{ClientError, DISCONNECTED, Request, parse_reply},
    event_filter::EventFilter,
    event_stream::EventRecord,
};

use super::{
    error::CliResult,
    output::print,
    remote::Remote,
    runtime::block_on,
    terminal::{Output, Paint},
};

/// Show the last events: decisions with their reasons, workers' states, orders
///
/// The manager keeps the last 256. The event log has more, and samples of heartbeats.
#[derive(clap::Args)]
pub struct Args {
    /// After the last events, show new ones as they happen, until interrupted
    #[arg(long, short)]
    follow: bool,

    /// Show only the last COUNT matching events
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<usize>,

    /// Only events that name this worker
    #[arg(long)]
    worker: Option<String>,

    /// Only events of this service, and of its workers
    #[arg(long)]
    service: Option<String>,

    /// Only events of this severity or a higher one
    #[arg(long, value_name = "SEVERITY", value_enum)]
    severity: Option<LeastSeverity>,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LeastSeverity {
    Info,
    #[value(alias = "warning")]
    Warn,
}

pub fn run(args: &Args) -> CliResult {
    Ok(block_on(show(args))?)
}

async fn show(args: &Args) -> Result<(), ClientError> {
    let request = Request::Events {
        limit: args.limit,
        follow: args.follow,
        filter: EventFilter {
            worker: args.worker.clone(),
            service: args.service.clone(),
            severity: args.severity.map(|it| match it {
                LeastSeverity::Info => Severity::Info,
                LeastSeverity::Warn => Severity::Warn,
            }),
        },
    };
    let mut lines = args.remote.client().stream(&request).await?;
    while let Some(line) = lines.next_line().await.context("wait for events")? {
        let entry: EventRecord = parse_reply(&line)?;
        match args.remote.json {
            true => print(&format!("{line}\n")),
            false => print(&event_text(&entry, Output::stdout())),
        }
    }
    if args.follow {
        return Err(anyhow::anyhow!(DISCONNECTED).into());
    }
    Ok(())
}

pub(super) fn event_text(entry: &EventRecord, output: Output) -> String {
    let (sign, paint) = match entry.severity {
        Severity::Info => ("", Paint::Plain),
        Severity::Warn => ("warning: ", Paint::Warning),
    };
    let time = &entry.time;
    let message = output.wrap(&format!("{sign}{}", entry.message), time.len() + 2);
    format!("{time}  {}\n", output.paint(&message, paint))
}
