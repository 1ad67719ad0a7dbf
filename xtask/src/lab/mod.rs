//! The lab: a client, a manager and two workers in network namespaces of this machine.

mod demo;
mod log_tail;
mod pair;
mod preparation;
mod record;
mod screen;
mod view;
mod window;

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use memlb_tests::{Cluster, ClusterOptions, ClusterPaths, Namespace};

use self::preparation::{ATTACH, PREFIX, paths, prepare};
use crate::{
    privilege::{as_root, replace_process, run_as_root},
    setup,
    workspace::{self, print_message},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LabCommand {
    #[command(subcommand)]
    verb: Option<LabVerb>,
    #[command(flatten)]
    options: LabOptions,
}

#[derive(Debug, Subcommand)]
enum LabVerb {
    /// Runs a script of memory changes and failures, and measures their effect on a client
    Demo {
        /// Where to attach the packet programs
        #[arg(long, value_parser = ATTACH, default_value = "auto")]
        attach: String,
    },
    /// Shows a lab with two managers, keepalived and peers, live, until Ctrl-C
    Pair(pair::PairLab),
    /// Draws a session in the lab, as the picture of the README
    Record,
    /// Starts the lab and leaves it running
    Up(LabOptions),
    /// Starts a shell on the lab's manager, where `memlb VERB` reaches it; or runs a command there
    Shell {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Runs a command on the lab's client
    Exec {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Removes the lab, also after a crash
    Down,
}

#[derive(Debug, Args)]
struct LabOptions {
    /// Where to attach the packet programs
    #[arg(long, value_parser = ATTACH, default_value = "auto")]
    attach: String,
    /// The manager's configuration [default: the built-in example]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl LabCommand {
    pub fn run(self) -> Result<ExitCode> {
        match self.verb {
            None => live(&self.options)?,
            Some(LabVerb::Demo { attach }) => return demo(&attach),
            Some(LabVerb::Pair(lab)) => return lab.run(),
            Some(LabVerb::Record) => record()?,
            Some(LabVerb::Up(options)) => up(&options)?,
            Some(LabVerb::Shell { command }) => shell(command)?,
            Some(LabVerb::Exec { command }) => exec(&command)?,
            Some(LabVerb::Down) => down()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn live(options: &LabOptions) -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(&options.attach, options.config.as_deref())?;
    let page = window::open(&cluster)?;
    let shown = view::show(&cluster, page.as_deref(), &interrupt);
    print_message("removing the lab");
    drop(cluster);
    shown
}

fn demo(attach: &str) -> Result<ExitCode> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(attach, None)?;
    Ok(match demo::run(cluster, &interrupt)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn record() -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start("auto", None)?;
    interrupt.check()?;
    let picture = workspace::root().join(record::PICTURE);
    record::record(&cluster, &picture)?;
    print_message(format!("drew {}", picture.display()));
    Ok(())
}

fn up(options: &LabOptions) -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(&options.attach, options.config.as_deref())?;
    interrupt.check()?;
    let page = window::open(&cluster)?;
    let link = programs(&cluster.paths).join("memlb");
    fs::create_dir_all(programs(&cluster.paths))
        .context("make the folder of the shell's programs")?;
    symlink(&cluster.binary, &link).with_context(|| format!("make {}", link.display()))?;
    println!("{}", usage(&cluster, page.as_deref()));
    cluster.keep();
    Ok(())
}

/// The directory that [`LabVerb::Shell`] puts into `PATH`.
fn programs(paths: &ClusterPaths) -> PathBuf {
    paths.directory.join("bin")
}

/// Runs a command in the manager's network namespace. Not by `ip netns exec`, which hides the pinned maps.
fn shell(mut command: Vec<OsString>) -> Result<()> {
    ensure_up()?;
    let paths = paths();
    if command.is_empty() {
        print_message(
            "on the lab's manager: `memlb status` and all other verbs reach it; `exit` ends the shell",
        );
        command.push(env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    let path = env::var("PATH").unwrap_or_default();
    let mut inside = inside("manager");
    inside
        .arg("env")
        .arg(format!("PATH={}:{path}", programs(&paths).display()))
        .arg(format!(
            "MEMLB_CONTROL_SOCKET={}",
            paths.control_socket().display()
        ))
        .args(command);
    Err(replace_process(inside))
}

fn exec(command: &[OsString]) -> Result<()> {
    ensure_up()?;
    let mut inside = inside("client");
    inside.args(command);
    Err(replace_process(inside))
}

/// Returns a command as root in a node's network namespace, to be completed with a program.
fn inside(node: &str) -> Command {
    let mut nsenter = as_root("nsenter");
    nsenter.args([&format!("--net=/run/netns/{PREFIX}{node}"), "--"]);
    nsenter
}

fn down() -> Result<()> {
    let paths = paths();
    if !paths.is_taken() {
        print_message("no lab is up");
        return Ok(());
    }
    run_as_root()?;
    paths.clear()?;
    print_message("the lab is down");
    Ok(())
}

fn start(attach: &str, config: Option<&Path>) -> Result<Cluster> {
    let configuration = match config {
        Some(file) => file
            .canonicalize()
            .with_context(|| format!("find the configuration {}", file.display()))?,
        None => workspace::root().join("lb-user/memlb.toml"),
    };
    print_message(
        "starting the lab: a client, a manager and two workers, each in its own network namespace",
    );
    Cluster::start_at(
        paths(),
        &ClusterOptions {
            panic_threshold: 60,
            attach: attach.into(),
            configuration: Some(configuration),
            ..ClusterOptions::default()
        },
    )
}

fn ensure_up() -> Result<()> {
    ensure!(
        Namespace::exists(&format!("{PREFIX}client")),
        "no lab is up: `cargo xtask lab up` starts one"
    );
    Ok(())
}

/// Returns the commands for a lab that is up.
fn usage(cluster: &Cluster, page: Option<&str>) -> String {
    let page = page.unwrap_or("(its configuration serves no web page)");
    let service = cluster.service().ip();
    let directory = cluster.paths.directory.display();
    let pins = cluster.paths.pin_path.display();
    format!(
        "The lab is up.

  {page:<51} the web page, for a browser on this machine
  cargo xtask lab exec -- curl -s http://{service}/   a request of the client
  cargo xtask lab shell                               a shell on the manager; there, for instance:
  cargo xtask lab down                                removes the lab

  memlb status                       what is selected, and why
  memlb top                          the same, live
  memlb explain 192.168.56.10        why the client's connections go to their workers
  memlb flows                        open connections
  memlb events --follow              decisions as they happen
  memlb trace --count 10             single packets and their verdicts
  memlb drain worker1                no new connections for worker1
  memlb undrain worker1              ends that
  memlb workers                      state and memory of each worker
  memlb doctor                       faults, and the commands that repair them

and as root:

  $EDITOR {directory}/worker1.meminfo        change worker1's memory; its agent reads this file
  tail -f {directory}/manager.log            the manager's log; as JSON: events.jsonl
  nsenter --net=/run/netns/{PREFIX}worker1     a shell on worker1, and likewise on the others
  bpftool map dump pinned {pins}/backends"
    )
}
