//! The command line: one file for each family of verbs.

mod admin;
mod agent;
mod agent_settings;
mod check;
mod deny;
mod doctor;
mod error;
mod events;
mod flows;
mod generate;
mod handover;
mod health;
mod import;
mod journal;
mod keygen;
mod log;
mod manager;
mod output;
mod pinned;
mod reload;
mod remote;
mod runtime;
mod shorten;
mod simulate;
mod source;
mod sources;
mod status;
mod status_peers;
mod status_view;
mod swarm;
mod table;
mod terminal;
mod top;
mod trace;
mod unload;
#[cfg(test)]
mod widths;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use memlb::config::{ConfigError, Problem};
use serde::Serialize;

use self::{
    error::{CliError, CliResult},
    output::print_error,
    terminal::{Output, Paint},
};

/// A load balancer in the kernel, steered by the memory of its workers
#[derive(Parser)]
#[command(name = "memlb", version, after_help = EXIT_STATUS)]
struct Cli {
    /// Format of log lines; auto: entries with severity and fields where systemd's journal receives them, else text
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = log::LogFormat::Auto)]
    log_format: log::LogFormat,

    /// Colours of states and problems
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    color: terminal::Color,

    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "Exit status: 0 success, 1 failure at run time, 2 wrong usage or \
configuration. With --json, an error is a line of JSON on standard error.\nMEMLB_CONTROL_SOCKET names the manager for every verb. Log level: RUST_LOG=debug, RUST_LOG=info, RUST_LOG=warn.";

#[derive(Subcommand)]
enum Verb {
    Manager(manager::Args),
    Agent(agent::Args),
    Status(status::Args),
    Top(top::Args),
    Services(status::ServicesArgs),
    Workers(status::WorkersArgs),
    Sources(sources::Args),
    Swarm(swarm::Args),
    /// Send no new connections to a worker; open ones continue
    ///
    /// The order stays in force until `memlb undrain`, also after a restart of the manager or of the machine.
    Drain(admin::DrainArgs),
    /// Drain a worker for maintenance: its silence or bad health raises no alarm
    Maintenance(admin::DrainArgs),
    Undrain(admin::UndrainArgs),
    Weight(admin::WeightArgs),
    Pause(admin::PauseArgs),
    Resume(admin::ResumeArgs),
    Handover(handover::Args),
    Deny(deny::Args),
    Flows(flows::Args),
    Explain(flows::ExplainArgs),
    Events(events::Args),
    Trace(trace::Args),
    Reload(reload::Args),
    Unload(unload::Args),
    Check(check::Args),
    Import(import::Args),
    Doctor(doctor::Args),
    Simulate(simulate::Args),
    Keygen(keygen::Args),
    Completions(generate::CompletionsArgs),
    #[command(hide = true)]
    Man(generate::ManArgs),
}

/// An error as `--json` prints it, on one line of standard error.
#[derive(Serialize)]
struct ErrorReport<'a> {
    error: String,
    exit_status: u8,
    /// The problems of a configuration.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    problems: &'a [Problem],
}

pub fn run() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() && std::env::args().any(|it| it == "--json") => {
            return report(&CliError::usage(error), true);
        }
        Err(error) => error.exit(),
    };
    let is_json = wants_json(&matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    log::start(cli.log_format);
    terminal::set_color(cli.color);
    match run_verb(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, is_json),
    }
}

/// Whether the verb has `--json`.
fn wants_json(matches: &ArgMatches) -> bool {
    let is_set = matches!(matches.try_get_one::<bool>("json"), Ok(Some(true)));
    is_set || matches.subcommand().is_some_and(|(_, it)| wants_json(it))
}

/// Prints an error, and returns its exit status.
fn report(error: &CliError, is_json: bool) -> ExitCode {
    let (error, exit_status) = match error {
        CliError::RunTime(error) => (error, 1),
        CliError::Usage(error) => (error, 2),
    };
    let config = error.downcast_ref::<ConfigError>();
    let json = ErrorReport {
        error: format!("{error:#}"),
        exit_status,
        problems: config.map_or(&[], |it| &it.problems),
    };
    match serde_json::to_string(&json) {
        Ok(json) if is_json => print_error(&json),
        _ => {
            let output = Output::stderr();
            let sign = output.paint("memlb:", Paint::Bad);
            let text = output.wrap_lines(&format!("{sign} {error:#}"));
            print_error(text.trim_end());
        }
    }
    ExitCode::from(exit_status)
}

fn run_verb(verb: Verb) -> CliResult {
    match verb {
        Verb::Manager(args) => manager::run(args),
        Verb::Agent(args) => agent::run(args),
        Verb::Status(args) => status::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Services(args) => status::services(&args),
        Verb::Workers(args) => status::workers(&args),
        Verb::Sources(args) => sources::run(args),
        Verb::Swarm(args) => swarm::run(args),
        Verb::Drain(args) => admin::drain(args),
        Verb::Maintenance(args) => admin::maintenance(args),
        Verb::Undrain(args) => admin::undrain(args),
        Verb::Weight(args) => admin::weight(args),
        Verb::Pause(args) => admin::pause(args),
        Verb::Resume(args) => admin::resume(args),
        Verb::Handover(args) => handover::run(&args),
        Verb::Deny(args) => deny::run(args),
        Verb::Flows(args) => flows::run(args),
        Verb::Explain(args) => flows::explain(&args),
        Verb::Events(args) => events::run(&args),
        Verb::Trace(args) => trace::run(args),
        Verb::Reload(args) => reload::run(&args),
        Verb::Unload(args) => unload::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Keygen(args) => keygen::run(&args),
        Verb::Completions(args) => generate::completions(&args, Cli::command()),
        Verb::Man(args) => generate::man(&args, Cli::command()),
    }
}
