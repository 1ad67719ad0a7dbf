//! The three-node lab in network namespaces on this one machine.

mod demo;
mod log_tail;
mod pair;
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
use clap::{Args, Subcommand, ValueEnum};
use memlb_tests::{Cluster, ClusterOptions, ClusterPaths, Namespace, cluster::BINARY};

use crate::{
    build,
    interrupt::Interrupt,
    privilege::{self, as_root, become_command, become_root},
    setup,
    workspace::{self, say},
};

/// What the names of the lab's namespaces begin with.
const PREFIX: &str = "memlb-";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Lab {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Plays a scripted story of memory changes and failures, with a client that measures
    Demo {
        /// Where to attach the packet programs
        #[arg(long, value_enum, default_value_t = Attach::Auto)]
        attach: Attach,
    },
    /// Shows a lab with two managers, keepalived and peers, live, until Ctrl-C
    Pair(pair::PairLab),
    /// Records a session in the lab as the README's picture
    Record,
    /// Starts the lab and leaves it running
    Up(Options),
    /// Starts a shell on the lab's manager, in which `memlb VERB` speaks to it; or runs a command there
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
struct Options {
    /// Where to attach the packet programs
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    attach: Attach,
    /// The manager's configuration [default: the built-in example]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Attach {
    Auto,
    Tc,
    Xdp,
}

impl Lab {
    pub fn run(self) -> Result<ExitCode> {
        match self.verb {
            None => live(&self.options)?,
            Some(Verb::Demo { attach }) => return demo(attach),
            Some(Verb::Pair(lab)) => return lab.run(),
            Some(Verb::Record) => record()?,
            Some(Verb::Up(options)) => up(&options)?,
            Some(Verb::Shell { command }) => shell(command)?,
            Some(Verb::Exec { command }) => exec(&command)?,
            Some(Verb::Down) => down()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn live(options: &Options) -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(options.attach, options.config.as_deref())?;
    let page = window::open(&cluster)?;
    let shown = view::show(&cluster, page.as_deref(), &interrupt);
    say("taking the lab down");
    drop(cluster);
    shown
}

fn demo(attach: Attach) -> Result<ExitCode> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(attach, None)?;
    let as_expected = demo::play(cluster, &interrupt)?;
    Ok(if as_expected {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn record() -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(Attach::Auto, None)?;
    interrupt.check()?;
    let picture = workspace::root().join(record::PICTURE);
    record::record(&cluster, &picture)?;
    say(format!("drew {}", picture.display()));
    Ok(())
}

fn up(options: &Options) -> Result<()> {
    let interrupt = prepare(setup::for_the_lab)?;
    let cluster = start(options.attach, options.config.as_deref())?;
    interrupt.check()?;
    let page = window::open(&cluster)?;
    let link = programs(&cluster.paths).join("memlb");
    fs::create_dir_all(programs(&cluster.paths)).context("make room for the shell's programs")?;
    symlink(&cluster.binary, &link).with_context(|| format!("make {}", link.display()))?;
    println!("{}", by_hand(&cluster, page.as_deref()));
    cluster.keep();
    Ok(())
}

/// The directory that [`Verb::Shell`] puts into `PATH`.
fn programs(paths: &ClusterPaths) -> PathBuf {
    paths.directory.join("bin")
}

/// With the manager's network. Not by `ip netns exec`, which hides the pinned maps.
fn shell(mut command: Vec<OsString>) -> Result<()> {
    ensure_up()?;
    let paths = paths();
    if command.is_empty() {
        say(
            "on the lab's manager: `memlb status` and every other verb speak to it; `exit` returns",
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
    Err(become_command(inside))
}

fn exec(command: &[OsString]) -> Result<()> {
    ensure_up()?;
    let mut inside = inside("client");
    inside.args(command);
    Err(become_command(inside))
}

/// Returns a command as root with a node's network, to be completed with a program.
fn inside(node: &str) -> Command {
    let mut nsenter = as_root("nsenter");
    nsenter.args([&format!("--net=/run/netns/{PREFIX}{node}"), "--"]);
    nsenter
}

fn down() -> Result<()> {
    let paths = paths();
    if !paths.is_taken() {
        say("no lab is up");
        return Ok(());
    }
    become_root()?;
    paths.clear()?;
    say("the lab is down");
    Ok(())
}

/// Goes on as root with everything built and installed, if there is room for a lab.
fn prepare(provide_tools: fn() -> Result<()>) -> Result<Interrupt> {
    let paths = paths();
    ensure!(
        !paths.is_taken(),
        "a lab is up already, or one has ended badly: `cargo xtask lab down` takes it down"
    );
    ensure!(
        !paths.pin_path.exists(),
        "a memlb manager of this machine has its pins in {}, which the lab uses too; \
         `memlb unload` removes them",
        paths.pin_path.display()
    );
    let given = env::var_os(BINARY).map(PathBuf::from);
    if privilege::is_root() && given.is_some() {
        return Interrupt::catch();
    }
    let memlb = given.map_or_else(build::memlb, Ok)?;
    provide_tools()?;
    Err(privilege::become_root_with(&memlb))
}

fn start(attach: Attach, config: Option<&Path>) -> Result<Cluster> {
    let configuration = match config {
        Some(file) => file
            .canonicalize()
            .with_context(|| format!("find the configuration {}", file.display()))?,
        None => workspace::root().join("lb-user/memlb.toml"),
    };
    say("starting the lab: a client, a manager and two workers, each in its own network namespace");
    Cluster::start_at(
        paths(),
        &ClusterOptions {
            panic_threshold: 60,
            attach: attach.name().into(),
            configuration: Some(configuration),
            ..ClusterOptions::default()
        },
    )
}

impl Attach {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

/// Returns the lab's own paths. The pins are where the manager's default is,
/// so that what people read about bpftool holds here.
fn paths() -> ClusterPaths {
    ClusterPaths {
        prefix: PREFIX.into(),
        directory: "/run/memlb-lab".into(),
        pin_path: "/sys/fs/bpf/memlb".into(),
    }
}

fn ensure_up() -> Result<()> {
    ensure!(
        Namespace::exists(&format!("{PREFIX}client")),
        "no lab is up: `cargo xtask lab up` starts one"
    );
    Ok(())
}

/// Returns what a person can do with a lab that is up.
fn by_hand(cluster: &Cluster, page: Option<&str>) -> String {
    let page = page.unwrap_or("(its configuration serves no web page)");
    let service = cluster.service().ip();
    let directory = cluster.paths.directory.display();
    let pins = cluster.paths.pin_path.display();
    format!(
        "The lab is up.

  {page:<51} see it in a browser on this machine
  cargo xtask lab exec -- curl -s http://{service}/   be the client
  cargo xtask lab shell                               be on the manager; there, for instance:
  cargo xtask lab down                                take it down

  memlb status                       what is selected, and why
  memlb top                          the same, live
  memlb explain 192.168.56.10        why the client's connections are where they are
  memlb flows                        open connections
  memlb events --follow              decisions as they happen
  memlb trace --count 10             single packets and what became of them
  memlb drain worker1                no new connections for worker1
  memlb undrain worker1              ends that
  memlb workers                      state and memory of each worker
  memlb doctor                       faults, and the commands that repair them

and as root:

  $EDITOR {directory}/worker1.meminfo        move worker1's memory; its agent reads it there
  tail -f {directory}/manager.log            what the manager receives and decides; as JSON: events.jsonl
  nsenter --net=/run/netns/{PREFIX}worker1     be on worker1, and likewise on the others
  bpftool map dump pinned {pins}/backends"
    )
}
