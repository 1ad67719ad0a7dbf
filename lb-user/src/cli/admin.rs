//! `memlb drain`, `maintenance`, `undrain`, `weight`, `pause` and `resume`: the operator's commands about a worker.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lb_core::{AdminAction, AdminState, check_reason, counted, milliseconds};
use memlb::{
    control::{AdminReply, ClientError, ControlClient, ErrorReply, Request},
    flows::{FlowFilter, Flows},
    status::{Status, format_seconds},
};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    error::{CliError, CliResult},
    output::{and_more, print, print_error, print_json},
    remote::Remote,
    runtime::block_on,
    terminal::Output,
};

/// The interval at which the connections of a draining worker are counted.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The interval at which `--wait` names the silent connections.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// The minimum interval of lines with the count, if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A connection without a packet for this long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(30);

/// The maximum number of connections in the manager's reply, and of those that are named.
const MAX_LISTED: usize = 10_000;
const MAX_NAMED: usize = 5;

const TERMINATE: AdminAction = AdminAction::SetState {
    state: AdminState::Terminate,
};

// The options of `drain` and `maintenance`; `Verb` has their help texts.
#[derive(clap::Args)]
pub struct DrainArgs {
    #[command(flatten)]
    target: WorkerSelector,

    #[command(flatten)]
    wait_options: WaitOptions,

    #[command(flatten)]
    remote: Remote,
}

/// End drain or maintenance: send new connections to the worker again
#[derive(clap::Args)]
pub struct UndrainArgs {
    #[command(flatten)]
    target: WorkerSelector,

    #[command(flatten)]
    remote: Remote,
}

/// Change a worker's share of new connections
///
/// With a weight of 0 it gets no new connections. A weight of 100 removes the order.
#[derive(clap::Args)]
pub struct WeightArgs {
    #[command(flatten)]
    target: WorkerSelector,

    /// Percent of its normal share, 0 to 1000, with or without a %
    #[arg(value_parser = percent)]
    percent: u32,

    #[command(flatten)]
    remote: Remote,
}

/// Expect a worker to be silent for a while, as when its machine or container is moved
///
/// It gets no new connection, open connections continue to its address, and its silence raises no alarm.
/// The pause ends at its deadline, at `memlb resume`, or when the worker was silent for
/// failover.down_after and has sent failover.up_after good heartbeats again. A worker that is still
/// silent at the end is down as usual: its connections are reset.
#[derive(clap::Args)]
pub struct PauseArgs {
    /// The worker's name
    worker: String,

    /// The longest that the worker may be silent, 1s to 1h
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// The reason, shown with the pause: one line of at most 1000 bytes
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// End a worker's pause: it gets new connections again, or is down if it is silent
#[derive(clap::Args)]
pub struct ResumeArgs {
    /// The worker's name
    worker: String,

    #[command(flatten)]
    remote: Remote,
}

/// The worker of a command, and the reason.
#[derive(clap::Args)]
struct WorkerSelector {
    /// The worker's name
    worker: String,

    /// Only in this service, not in all that the worker serves
    #[arg(long)]
    service: Option<String>,

    /// The reason, shown with the order: one line of at most 1000 bytes
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl WorkerSelector {
    fn in_all_services(worker: String, reason: Option<String>) -> Self {
        Self {
            worker,
            service: None,
            reason,
        }
    }
}

/// Whether to wait for the worker's connections to end.
#[derive(clap::Args)]
struct WaitOptions {
    /// Wait until the worker's connections have ended
    #[arg(long)]
    wait: bool,

    /// Wait at most this long, e.g. 5m; exit with status 1 if connections are left
    #[arg(long, requires = "wait", value_name = "DURATION", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,

    /// At the deadline, reset the connections that are left: each at its next packet, as long as the
    /// worker stays drained
    #[arg(long, requires = "deadline")]
    terminate: bool,

    /// The former name of --terminate
    #[arg(long, hide = true)]
    cut: bool,
}

/// The result of an order, as `--json` prints it.
#[derive(Serialize)]
struct OrderReport {
    #[serde(flatten)]
    ordered: AdminReply,
    /// The worker's connections after waiting; `None` without `--wait`.
    connections_left: Option<u64>,
    /// The silent ones of the connections that are left at the deadline.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    silent: Vec<SilentConnection>,
    terminated: bool,
}

/// A connection without a packet for [`SILENT_AFTER`].
#[derive(Debug, PartialEq, Eq, Serialize)]
struct SilentConnection {
    client: String,
    worker_address: String,
    silent_ms: u64,
}

pub fn drain(args: DrainArgs) -> CliResult {
    set_state(args, AdminState::Drain)
}

pub fn maintenance(args: DrainArgs) -> CliResult {
    set_state(args, AdminState::Maintenance)
}

pub fn undrain(args: UndrainArgs) -> CliResult {
    execute(&args.remote, &args.target, AdminAction::Undrain)
}

pub fn weight(args: WeightArgs) -> CliResult {
    let percent = args.percent;
    execute(&args.remote, &args.target, AdminAction::Weight { percent })
}

pub fn pause(args: PauseArgs) -> CliResult {
    let for_ms = milliseconds(args.duration);
    let target = WorkerSelector::in_all_services(args.worker, args.reason);
    execute(&args.remote, &target, AdminAction::Pause { for_ms })
}

pub fn resume(args: ResumeArgs) -> CliResult {
    let target = WorkerSelector::in_all_services(args.worker, None);
    execute(&args.remote, &target, AdminAction::Resume)
}

fn execute(remote: &Remote, target: &WorkerSelector, action: AdminAction) -> CliResult {
    finish(remote, send_command(remote, target, action)?, None, false)
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim();
    number
        .parse()
        .map_err(|_| "expected a whole number of percent, such as 50 or 50%".to_owned())
}

fn set_state(args: DrainArgs, state: AdminState) -> CliResult {
    let DrainArgs {
        target,
        wait_options,
        remote,
    } = args;
    let remote = &remote;
    if wait_options.cut {
        return Err(CliError::usage("--cut was renamed: use --terminate"));
    }
    let ordered = send_command(remote, &target, AdminAction::SetState { state })?;
    if !wait_options.wait {
        return finish(remote, ordered, None, false);
    }
    if !remote.json {
        print(&order_text(&ordered));
    }
    let progress = Progress::new(&target.worker, !remote.json);
    let left = block_on(wait(
        &remote.client(),
        &target,
        wait_options.deadline,
        progress,
    ))?;
    let worker = &target.worker;
    if left == 0 || wait_options.terminate {
        let is_terminated = left > 0;
        let ordered = match is_terminated {
            true => send_command(remote, &target, TERMINATE)?,
            false => ordered,
        };
        if remote.json {
            return finish(remote, ordered, Some(left), is_terminated);
        }
        print(&match is_terminated {
            true => format!(
                "{} of {worker} left: each is reset at its next packet, as long as {worker} stays \
                 drained\n",
                counted(left, "connection")
            ),
            false => format!("{worker} has no connection left\n"),
        });
        return Ok(());
    }
    let silent = block_on(silent_connections(&remote.client(), &target))?;
    let named = silent_sentence(&silent);
    if remote.json {
        print_json(&OrderReport {
            ordered,
            connections_left: Some(left),
            silent,
            terminated: false,
        })?;
    }
    Err(CliError::RunTime(anyhow::anyhow!(
        "the deadline has passed and {} of {worker} {} left{named}; it stays drained. `memlb flows \
         --worker {worker}` lists {}; --terminate with --deadline ends {2}",
        counted(left, "connection"),
        if left == 1 { "is" } else { "are" },
        if left == 1 { "it" } else { "them" },
    )))
}

fn send_command(
    remote: &Remote,
    target: &WorkerSelector,
    action: AdminAction,
) -> Result<AdminReply, ClientError> {
    if let Some(reason) = &target.reason {
        check_reason(reason).map_err(|problem| {
            ClientError::Refused(ErrorReply {
                error: format!("--reason: {problem}"),
                is_usage: true,
            })
        })?;
    }
    remote.request(&Request::Order {
        worker: target.worker.clone(),
        service: target.service.clone(),
        order: action,
        reason: target.reason.clone(),
    })
}

/// Waits until the worker has no connection or the deadline passes, and returns how many are left. Names the silent
/// ones at intervals.
///
/// # Errors
///
/// After an interrupt, says that the order stays in force.
async fn wait(
    client: &ControlClient,
    target: &WorkerSelector,
    deadline: Option<Duration>,
    mut progress: Progress,
) -> Result<u64, ClientError> {
    let start = Instant::now();
    let mut next_report = REPORT_INTERVAL;
    let mut interrupts = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    loop {
        let status: Status = client.request(&Request::Status).await?;
        let left = connections(&status, target)?;
        let remaining = deadline.map(|deadline| deadline.saturating_sub(start.elapsed()));
        if left == 0 || remaining == Some(Duration::ZERO) {
            progress.clear();
            return Ok(left);
        }
        if start.elapsed() >= next_report {
            next_report += REPORT_INTERVAL;
            let silent = silent_sentence(&silent_connections(client, target).await?);
            progress.report(left, &silent);
        }
        progress.show(left, start.elapsed(), remaining);
        let pause = remaining.map_or(POLL_INTERVAL, |it| it.min(POLL_INTERVAL));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = interrupts.recv() => {
                progress.clear();
                return Err(interrupted(target, left).into());
            }
        }
    }
}

fn interrupted(target: &WorkerSelector, left: u64) -> anyhow::Error {
    let worker = &target.worker;
    let of_service = match &target.service {
        Some(service) => format!(" --service {service}"),
        None => String::new(),
    };
    anyhow::anyhow!(
        "interrupted, with {} of {worker} left; {worker} stays drained: `memlb undrain \
         {worker}{of_service}` ends that, the same command waits again",
        counted(left, "connection")
    )
}

/// Shows the number of connections on standard error: in one line on a terminal, else in a new line when it has
/// changed.
struct Progress {
    worker: String,
    is_shown: bool,
    output: Output,
    is_terminal: bool,
    last: Option<(u64, Instant)>,
}

impl Progress {
    fn new(worker: &str, is_shown: bool) -> Self {
        Self {
            worker: worker.to_owned(),
            is_shown,
            output: Output::stderr(),
            is_terminal: std::io::stderr().is_terminal(),
            last: None,
        }
    }

    fn show(&mut self, left: u64, waited: Duration, remaining: Option<Duration>) {
        let is_due = match self.last {
            None => true,
            Some((before, at)) => {
                self.is_terminal || before != left && at.elapsed() >= LINE_INTERVAL
            }
        };
        if !self.is_shown || !is_due {
            return;
        }
        let seconds = |it: Duration| format_seconds(milliseconds(it));
        let deadline = remaining.map(|it| format!(", {} until the deadline", seconds(it)));
        let (worker, waited) = (&self.worker, seconds(waited));
        let line = format!(
            "{worker}: {} left after {waited}{}",
            counted(left, "connection"),
            deadline.unwrap_or_default()
        );
        match self.is_terminal {
            true => {
                let width = self.output.width.unwrap_or(80).saturating_sub(1);
                // A line that is longer than the terminal is wide cannot be replaced.
                let short: String = match line.chars().count() > width {
                    true => format!("{} left", counted(left, "connection")),
                    false => line,
                };
                self.print(&format!("\r\x1b[K{short}"));
            }
            false => print_error(&line),
        }
        self.last = Some((left, Instant::now()));
    }

    /// Prints a permanent line.
    fn report(&self, left: u64, silent: &str) {
        self.clear();
        let line = format!(
            "waiting for {} of {}{silent}",
            counted(left, "connection"),
            self.worker
        );
        print_error(&self.output.wrap(&line, 2));
    }

    fn clear(&self) {
        if self.is_shown && self.is_terminal {
            self.print("\r\x1b[K");
        }
    }

    /// Ignores an error of standard error: the result goes to standard output.
    fn print(&self, text: &str) {
        _ = write!(std::io::stderr(), "{text}").and_then(|()| std::io::stderr().flush());
    }
}

/// Returns the worker's connections without a packet for [`SILENT_AFTER`], the longest silent first.
async fn silent_connections(
    client: &ControlClient,
    target: &WorkerSelector,
) -> Result<Vec<SilentConnection>, ClientError> {
    let request = Request::Flows {
        filter: FlowFilter {
            worker: Some(target.worker.clone()),
            service: target.service.clone(),
            ..FlowFilter::default()
        },
        limit: MAX_LISTED,
    };
    let flows: Flows = client.request(&request).await?;
    let silent = flows.flows.into_iter().map(|row| SilentConnection {
        client: row.client,
        worker_address: row.worker_address,
        silent_ms: row.idle_ms,
    });
    let mut silent: Vec<SilentConnection> = silent
        .filter(|it| Duration::from_millis(it.silent_ms) >= SILENT_AFTER)
        .collect();
    silent.sort_by_key(|it| std::cmp::Reverse(it.silent_ms));
    Ok(silent)
}

/// The number of silent connections, with the longest silent ones, as the end of a sentence.
fn silent_sentence(silent: &[SilentConnection]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let named = silent.iter().take(MAX_NAMED).map(|it| {
        let (client, worker, since) =
            (&it.client, &it.worker_address, format_seconds(it.silent_ms));
        format!("{client} to {worker} for {since}")
    });
    let named: Vec<String> = named.collect();
    let (count, named) = (silent.len(), named.join(", "));
    format!(
        ", {count} of them silent: {named}{}",
        and_more(count, MAX_NAMED)
    )
}

/// Returns the number of the worker's connections.
///
/// # Errors
///
/// Says why the manager does not count them.
fn connections(status: &Status, target: &WorkerSelector) -> anyhow::Result<u64> {
    let worker = &target.worker;
    if let Some(problem) = &status.counters_problem {
        bail!("the connections of {worker} cannot be counted: {problem}");
    }
    let wanted = |name: &str| target.service.as_deref().is_none_or(|it| it == name);
    let services = status.services.iter().filter(|it| wanted(&it.name));
    let backends = services.flat_map(|service| &service.backends);
    let backends = backends.filter(|backend| backend.seen.name == *worker);
    let counts: Vec<u64> = backends
        .map(|it| it.traffic.flows + it.traffic.half_open)
        .collect();
    ensure!(
        !counts.is_empty(),
        "{worker} is no longer configured, so that its connections are not counted; open ones continue, and `memlb \
         flows` lists them as those of a removed worker"
    );
    Ok(counts.iter().sum())
}

fn finish(remote: &Remote, ordered: AdminReply, left: Option<u64>, terminated: bool) -> CliResult {
    let report = OrderReport {
        ordered,
        connections_left: left,
        silent: Vec::new(),
        terminated,
    };
    remote.print(&report, |report| {
        Output::stdout().wrap_lines(&order_text(&report.ordered))
    })
}

/// Returns an order as text, with its warnings.
fn order_text(ordered: &AdminReply) -> String {
    let mut text = format!("{}\n", ordered.order);
    for warning in &ordered.warnings {
        text += &format!("warning: {warning}\n");
    }
    if let Some(why) = &ordered.not_saved {
        text += &format!("warning: the order is lost at a restart of the manager: {why}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_may_have_a_percent_sign() {
        for text in ["50", "50%", "50 %"] {
            assert_eq!(percent(text), Ok(50), "{text}");
        }
        for text in ["", "%", "50%%", "half", "-1", "1.5"] {
            assert!(
                percent(text).unwrap_err().contains("such as 50 or 50%"),
                "{text}"
            );
        }
    }

    #[test]
    fn connections_that_the_manager_does_not_count_are_not_none() {
        let mut status = crate::cli::top::tests::status(2, 0, Instant::now());
        let target = WorkerSelector::in_all_services("worker1".to_owned(), None);
        let backends = &mut status.services[0].backends;
        let place = backends.iter().position(|it| it.seen.name == "worker1");
        let worker = &mut backends[place.unwrap()].traffic;
        (worker.flows, worker.half_open) = (3, 1);
        assert_eq!(connections(&status, &target).unwrap(), 4);

        status.counters_problem = Some("they have layout 4".to_owned());
        let said = connections(&status, &target).unwrap_err().to_string();
        assert!(
            said.contains("cannot be counted: they have layout 4"),
            "{said}"
        );

        status.counters_problem = None;
        status.services[0].backends.remove(place.unwrap());
        let said = connections(&status, &target).unwrap_err().to_string();
        assert!(said.contains("worker1 is no longer configured"), "{said}");
    }

    #[test]
    fn silent_connections_are_named_the_longest_first() {
        let silent = |client: u64| SilentConnection {
            client: format!("10.0.0.{client}:4711"),
            worker_address: "10.0.1.1:80".to_owned(),
            silent_ms: 60_000 * client,
        };
        assert_eq!(silent_sentence(&[]), "");
        assert_eq!(
            silent_sentence(&[silent(2), silent(1)]),
            ", 2 of them silent: 10.0.0.2:4711 to 10.0.1.1:80 for 2m, 10.0.0.1:4711 to 10.0.1.1:80 \
             for 1m"
        );
        let many: Vec<SilentConnection> = (1..=7).rev().map(silent).collect();
        assert!(silent_sentence(&many).ends_with("10.0.0.3:4711 to 10.0.1.1:80 for 3m and 2 more"));
    }
}
