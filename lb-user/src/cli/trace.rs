//! `memlb trace`: single packets and their verdicts, as they arrive.

use anyhow::{Context, anyhow};
use clap::builder::PossibleValuesParser;
use lb_common::verdict::{Verdict, VerdictClass};
use lb_core::{counted, milliseconds};
use memlb::{
    control::{DISCONNECTED, Request, parse_reply},
    trace::{Clients, DEFAULT_RATE, Dropped, MAX_RATE, Packet, TraceFilter, TraceLine},
};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
};

use super::{
    error::{CliError, CliResult},
    output::{print, print_error},
    remote::Remote,
    runtime::block_on,
    terminal::{Output, Paint},
};

/// Show single packets as they arrive: source, destination and outcome
///
/// Without a filter, it shows packets of services only. A trace runs only while this command runs, and costs
/// nothing otherwise. One trace runs at a time.
#[derive(clap::Args)]
pub struct Args {
    /// Only packets from or to these clients
    #[arg(long, value_name = "ADDRESS[/LENGTH][:PORT]")]
    client: Option<Clients>,

    /// Only packets of this service
    #[arg(long)]
    service: Option<String>,

    /// Only packets to or from this worker
    #[arg(long, visible_alias = "backend")]
    worker: Option<String>,

    /// Only packets with this verdict; may be repeated
    #[arg(
        long,
        visible_alias = "reason",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(Verdict::ALL.iter().map(|it| it.name())),
        hide_possible_values = true
    )]
    verdict: Vec<String>,

    /// Without a filter: also packets that belong to no service, which pass untouched
    #[arg(long, conflicts_with_all = ["client", "service", "worker", "verdict"])]
    all: bool,

    /// End after this number of packets
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time, such as 30s
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<std::time::Duration>,

    /// Show at most this number of packets a second, and count the others
    #[arg(
        long,
        value_name = "PACKETS",
        default_value_t = DEFAULT_RATE,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE))
    )]
    rate: u32,

    /// Show one in N of the matching packets, at random
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    sample: u32,

    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: Args) -> CliResult {
    block_on(show(args))
}

async fn show(args: Args) -> CliResult {
    let filter = TraceFilter {
        client: args.client,
        service: args.service,
        worker: args.worker,
        verdicts: args.verdict,
        all: args.all,
        rate: args.rate,
        sample: args.sample,
        count: args.count,
        duration_ms: args.duration.map(milliseconds),
    };
    let begin = match filter.is_of_services() {
        true => "tracing; only packets of services (--all: of others, too); Ctrl-C ends it",
        false => "tracing; Ctrl-C ends it",
    };
    let request = Request::Trace(filter);
    let mut lines = args.remote.client().stream(&request).await?;
    // One listener for the whole loop: a signal between two listeners would be lost.
    let mut interrupts = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let (mut packets, mut dropped) = (0, Dropped::default());
    loop {
        let text = select! {
            text = lines.next_line() => {
                let text = text.context("wait for packets")?;
                text.ok_or_else(|| CliError::RunTime(anyhow!(DISCONNECTED)))?
            }
            _ = interrupts.recv() => {
                let end = TraceLine::End { packets, dropped };
                serde_json::to_string(&end).context("encode the end")?
            }
        };
        let line: TraceLine = parse_reply(&text)?;
        if args.remote.json {
            print(&format!("{text}\n"));
        } else {
            print_line(&line, begin);
        }
        match line {
            TraceLine::Begun => {}
            TraceLine::Packet(_) => packets += 1,
            TraceLine::Dropped(until_now) => dropped = until_now,
            TraceLine::End { .. } => return Ok(()),
        }
    }
}

/// Prints packets to standard output, and other lines to standard error.
fn print_line(line: &TraceLine, begin: &str) {
    match line {
        TraceLine::Begun => print_error(begin),
        TraceLine::Packet(packet) => print(&packet_text(packet, Output::stdout())),
        TraceLine::Dropped(dropped) => {
            print_error(&format!("not shown until now: {dropped}"));
        }
        TraceLine::End { packets, dropped } => {
            print_error(&format!(
                "{}; not shown: {dropped}",
                counted(*packets, "packet")
            ));
        }
    }
}

pub(super) fn packet_text(packet: &Packet, output: Output) -> String {
    let class = Verdict::from_name(&packet.verdict).map(Verdict::class);
    let paint = match class.is_some_and(VerdictClass::is_loss) {
        true => Paint::Bad,
        false => Paint::Plain,
    };
    let line = output.wrap(&packet.to_string(), 2);
    output.paint(&line, paint) + "\n"
}
