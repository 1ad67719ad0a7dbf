//! The lab of scripts/vagrant on machines under QEMU: Debian 12 with its kernel, systemd and Docker, of Debian's packages
//! and without a box, provisioned by the same scripts. A fourth machine can make the manager one of a pair.

mod accelerator;
mod client;
mod demo;
mod image;
mod network;
mod node;
mod pair;
mod provision;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Subcommand;
use memlb_tests::{Namespace, Process, command::run};

use self::{
    image::Image,
    network::NAMESPACE,
    node::{MANAGER2, Node, machines},
    provision::on_all,
};
use crate::{
    interrupt::Interrupt,
    package,
    privilege::{as_root, become_command, become_root, this_program},
    setup,
    workspace::{say, target},
};

/// The package that the machines get, instead of one that is made; scripts/vagrant knows it, too.
const PACKAGE: &str = "MEMLB_PACKAGE";

#[derive(Debug, Subcommand)]
pub enum Machines {
    /// Makes the machines' image, boots them, and provisions them as `vagrant up` does
    Up {
        /// Also boots a second manager, which keepalived makes a pair with the first one
        #[arg(long)]
        pair: bool,
    },
    /// Runs smoke.sh, then puts memlb before the ports of Swarm's routing mesh; with a pair, hands over, then crashes the
    /// active manager and waits until it has booted
    Demo,
    /// Starts a shell on a machine, or runs a command there
    Ssh {
        /// manager, worker1, worker2 or manager2
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Removes the machines, also after a crash
    Down {
        /// Removes their image, too
        #[arg(long)]
        purge: bool,
    },
}

impl Machines {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Up { pair } => up(pair),
            Self::Demo => demo(),
            Self::Ssh { name, command } => ssh(&name, &command),
            Self::Down { purge } => down(purge),
        }
    }
}

/// Runs the machines from their image to the end of the demo, first without and then with a pair of managers, and removes
/// them; the image stays.
///
/// # Errors
/// When a step fails.
pub fn test(package: &Path) -> Result<()> {
    let task = |arguments: &[&str]| -> Result<()> {
        run(as_root("env")
            .arg(format!("{PACKAGE}={}", package.display()))
            .arg(this_program()?)
            .arg("machines")
            .args(arguments))
    };
    for up in [&["up"][..], &["up", "--pair"]] {
        let outcome = task(up).and_then(|()| task(&["demo"]));
        task(&["down"])?;
        outcome?;
    }
    Ok(())
}

fn up(pair: bool) -> Result<()> {
    ensure!(
        !Namespace::exists(NAMESPACE),
        "the machines are up already, or have ended badly: `cargo xtask machines down` removes them"
    );
    let package = match env::var_os(PACKAGE) {
        Some(given) => fs::canonicalize(&given)
            .with_context(|| format!("find the package {}", Path::new(&given).display()))?,
        None => package::make()?,
    };
    setup::for_machines()?;
    become_root_with(&package)?;
    let interrupt = Interrupt::catch()?;
    let (directory, started) = (directory(), Instant::now());
    let image = Image::provide(&directory)?;
    interrupt.check()?;
    let accelerator = accelerator::choose(&image, &directory)?;
    let nodes = machines(pair);
    let names: Vec<_> = nodes.iter().map(|node| node.name).collect();
    let namespace = network::create(&names)?;
    let processes = nodes
        .iter()
        .map(|node| node.boot(&namespace, &image, accelerator, &directory))
        .collect::<Result<Vec<_>>>()?;
    let processes = wait_until_booted(nodes, processes, &image, &interrupt)?;
    provision::provision(&image, &package, &interrupt)?;
    if pair {
        provision::join_managers(&image, &package, &directory, &interrupt)?;
    }
    for process in processes {
        process.keep();
    }
    namespace.keep();
    say(format!(
        "the machines are up, after {} s",
        started.elapsed().as_secs()
    ));
    println!("{BY_HAND}");
    Ok(())
}

fn wait_until_booted(
    nodes: &[Node],
    processes: Vec<Process>,
    image: &Image,
    interrupt: &Interrupt,
) -> Result<Vec<Process>> {
    let processes: Vec<_> = processes.into_iter().map(Mutex::new).collect();
    on_all("machines booted", nodes, &|node| {
        let index = nodes.iter().position(|it| it.name == node.name);
        let process = index.and_then(|index| processes.get(index));
        let process = process.context("every machine has a process")?;
        let mut process = process.lock().map_err(|_| anyhow!("panicked"))?;
        node.wait_until_booted(&mut process, image, interrupt)
    })?;
    let process = |it: Mutex<Process>| it.into_inner().map_err(|_| anyhow!("panicked"));
    processes.into_iter().map(process).collect()
}

fn demo() -> Result<()> {
    become_root()?;
    ensure_up()?;
    let (image, interrupt) = (Image::of(&directory()), Interrupt::catch()?);
    let namespace = Namespace::adopt(NAMESPACE).context("the machines' namespace is there")?;
    let outcome = if network::has(&namespace, MANAGER2.name) {
        pair::play(&image, &namespace, &interrupt)
    } else {
        demo::play(&image, &interrupt)
    };
    namespace.keep();
    outcome
}

fn ssh(name: &str, command: &[String]) -> Result<()> {
    let node = node::find(name)?;
    become_root()?;
    ensure_up()?;
    let mut ssh = node.ssh(&Image::of(&directory()));
    ssh.args(command);
    Err(become_command(ssh))
}

fn down(purge: bool) -> Result<()> {
    become_root()?;
    match Namespace::adopt(NAMESPACE) {
        // With all that runs in it.
        Some(namespace) => {
            drop(namespace);
            say("the machines are down");
        }
        None => say("no machines are up"),
    }
    let directory = directory();
    if purge && directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
        say(format!("{} is removed", directory.display()));
    }
    Ok(())
}

fn ensure_up() -> Result<()> {
    ensure!(
        Namespace::exists(NAMESPACE),
        "no machines are up: `cargo xtask machines up` boots them"
    );
    Ok(())
}

/// Goes on as root, with the package to install.
fn become_root_with(package: &Path) -> Result<()> {
    if crate::privilege::is_root() {
        return Ok(());
    }
    let mut task: Command = as_root("env");
    task.arg(format!("{PACKAGE}={}", package.display()))
        .arg(this_program()?)
        .args(env::args_os().skip(1));
    Err(become_command(task))
}

fn directory() -> PathBuf {
    target().join("machines")
}

const BY_HAND: &str = "
  cargo xtask machines ssh manager sudo memlb status   what is selected, and why
  cargo xtask machines ssh worker1                     a shell there
  cargo xtask machines demo                            smoke.sh and the routing mesh, or a pair's handover and crash
  cargo xtask machines down                            removes them

and as root: nsenter --net=/run/netns/memlb-machines curl http://192.168.56.101/
";
