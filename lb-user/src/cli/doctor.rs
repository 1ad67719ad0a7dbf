//! `memlb doctor`: problems of this host, and their remedies.

use std::{path::PathBuf, process::exit, time::Duration};

use anyhow::Context;
use lb_core::counted;
use memlb::{
    agent::{CheckTarget, HealthCheck, with_port},
    config::Config,
    doctor::{self, Diagnosis, Examined, Finding, Severity},
};

use super::{
    agent::{self, worker_name},
    agent_settings,
    error::{CliError, CliResult},
    output::{print, print_json},
    remote::socket_variable,
    runtime::block_on,
    source::ConfigSource,
    source::kernel_ports,
    terminal::{Output, Paint},
};

/// Examine this host as a manager, or with --agent as a worker; print faults and remedies
///
/// Without --config, doctor examines the values of the running manager, or the usual file if none runs. Each line has
/// ok, warning or problem, and the finding; after => it has the command that repairs it. Doctor changes nothing and
/// does not disturb a running manager or agent. Exit status: 0 without a problem, 1 with one, 2 for wrong usage.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    worker: WorkerArgs,

    #[command(flatten)]
    source: ConfigSource,
}

/// Options that `memlb agent` also has.
#[derive(clap::Args)]
struct WorkerArgs {
    /// Examine a worker's host. Other values than those of the options below come from the agent that runs here, or
    /// else from the service's arguments in /etc/default/memlb-agent and its key /etc/memlb/agent.key
    #[arg(long)]
    agent: bool,

    /// With --agent: address or name of a manager; may be repeated
    #[arg(long = "manager", value_name = "ADDR[:PORT]", requires = "agent")]
    managers: Vec<String>,

    /// With --agent: this worker's name [default: the host's name]
    #[arg(long, requires = "agent")]
    name: Option<String>,

    /// With --agent: the key that signs the heartbeats
    #[arg(long, value_name = "FILE", requires = "agent")]
    key: Option<PathBuf>,

    /// With --agent: this worker's own server, tcp://HOST:PORT or http://HOST[:PORT][/PATH]
    #[arg(long = "check", value_name = "URL", requires = "agent")]
    target: Option<CheckTarget>,
}

pub fn run(args: &Args) -> CliResult {
    let diagnosis = match args.worker.agent {
        true => examine_worker(&args.worker)?,
        // An overlap with the kernel's ports is a finding here, not wrong usage.
        false => examine_manager(&args.source)?,
    };
    if args.json {
        print_json(&diagnosis)?;
    } else {
        print(&diagnosis_text(&diagnosis, Output::stdout()));
    }
    if diagnosis.problems > 0 {
        exit(1);
    }
    Ok(())
}

/// The column in which the text of a finding begins, after severity and check.
const FOUND_COLUMN: usize = 23;

/// On a narrower terminal, the further lines of a finding begin further to the left.
const NARROW_WIDTH: usize = 60;

/// Formats each finding with its remedy in a line below, then the numbers of problems and warnings. A remedy is not
/// wrapped, so that it can be copied.
pub(super) fn diagnosis_text(diagnosis: &Diagnosis, output: Output) -> String {
    let mut text = String::new();
    for Finding {
        severity,
        check,
        found,
        remedy,
    } in &diagnosis.findings
    {
        let paint = severity_paint(*severity);
        let severity = output.paint(&format!("{:<7}", severity.name()), paint);
        let line = format!("{severity}  {check:<12}  {found}");
        let is_narrow = output.width.is_some_and(|width| width < NARROW_WIDTH);
        text += &match is_narrow {
            true => output.wrap_lines(&line),
            false => format!(
                "{severity}  {check:<12}  {}\n",
                output.wrap(found, FOUND_COLUMN)
            ),
        };
        if let Some(remedy) = remedy {
            let indent = if is_narrow { 2 } else { FOUND_COLUMN };
            let remedy = output.paint(&format!("=> {remedy}"), Paint::Bold);
            text += &format!("{:indent$}{remedy}\n", "");
        }
    }
    let count = |count: usize, what, bad| match count {
        0 => counted(count, what),
        _ => output.paint(&counted(count, what), bad),
    };
    text + &format!(
        "{}, {}\n",
        count(diagnosis.problems, "problem", Paint::Bad),
        count(diagnosis.warnings, "warning", Paint::Warning)
    )
}

fn severity_paint(severity: Severity) -> Paint {
    match severity {
        Severity::Ok => Paint::Good,
        Severity::Warning => Paint::Warning,
        Severity::Problem => Paint::Bad,
    }
}

/// Examines the file of --config, else the values of the running manager, else the usual file.
fn examine_manager(source: &ConfigSource) -> Result<Diagnosis, CliError> {
    let examine = |config: &Config, examined| {
        block_on(doctor::examine_manager(config, examined, kernel_ports())).map_err(CliError::from)
    };
    if !source.names_config()
        && let Some((config, finding)) = in_force(source)?
    {
        return examine(&config, Examined::InForce(finding));
    }
    let mut file = source.file();
    let mut config = source.read_for(None)?;
    if !source.is_given()
        && let Some(other) = block_on(doctor::config_file(&config.manager.control_socket))?
        && file.as_ref() != Some(&other)
    {
        config = source.read_file(&other, None)?;
        file = Some(other);
    }
    examine(&config, Examined::File(file.as_deref()))
}

/// Returns the values of the running manager, and how they differ from its file; `None` if no manager answers.
fn in_force(source: &ConfigSource) -> Result<Option<(Config, Finding)>, CliError> {
    // Errors of the file are reported later, if no manager runs.
    let usual = source.read_for(None).ok();
    let usual = usual.as_ref().map(|it| it.manager.control_socket.clone());
    let Some(socket) = socket_variable().or(usual) else {
        return Ok(None);
    };
    let asked = async { Ok::<_, CliError>(doctor::in_force(&socket).await?) };
    let Some(mut config) = block_on(asked)? else {
        return Ok(None);
    };
    config.manager.control_socket.clone_from(&socket);
    let path = block_on(doctor::config_file(&socket))?;
    let file = path.as_deref().map(|it| (it, source.read_file(it, None)));
    let finding = match &file {
        Some((path, Err(error))) => Finding::problem(
            "config",
            format!("the manager cannot be started again or reloaded with its file: {error}"),
            format!("$EDITOR {}; memlb check {0}", path.display()),
        ),
        Some((path, Ok(file))) => doctor::in_force_finding(&config, Some((*path, file))),
        None => doctor::in_force_finding(&config, None),
    };
    Ok(Some((config, finding)))
}

fn examine_worker(args: &WorkerArgs) -> Result<Diagnosis, CliError> {
    let found = agent_settings::find(args.name.as_deref())?;
    let own = found.arguments.as_ref();
    let managers = match (args.managers.is_empty(), own) {
        (false, _) => &args.managers,
        (true, Some(own)) => &own.managers,
        (true, None) => {
            let text = "no agent runs here, and /etc/default/memlb-agent names no manager: pass --manager ADDRESS";
            return Err(CliError::usage(text));
        }
    };
    let managers: anyhow::Result<Vec<String>> = managers
        .iter()
        .map(|manager| with_port(manager).context("--manager"))
        .collect();
    let worker = doctor::ExaminedAgent {
        managers: managers.map_err(CliError::Usage)?,
        name: worker_name(args.name.clone().or_else(|| own?.name.clone()))?,
        key: (args.key.clone())
            .or_else(|| own?.key.clone())
            .or(found.usual_key),
        check: (args.target.clone().map(check_of)).or_else(|| own?.check()),
        sources: own.map(agent::Args::sources).unwrap_or_default(),
        origin: found.origin,
    };
    Ok(block_on(doctor::examine_worker(&worker))?)
}

fn check_of(target: CheckTarget) -> HealthCheck {
    HealthCheck {
        target,
        expect_status: 200..=399,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
        failures: 1,
    }
}
