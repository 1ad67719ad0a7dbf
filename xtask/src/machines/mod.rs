//! The lab of scripts/vagrant on three machines under QEMU: Debian 12 with its kernel, systemd and Docker, of Debian's
//! packages and without a box, provisioned by the same scripts.

mod accelerator;
mod demo;
mod image;
mod network;
mod node;
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

use self::{image::Image, network::NAMESPACE, node::NODES, provision::on_all};
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
    Up,
    /// Runs smoke.sh, then puts memlb before the ports of Swarm's routing mesh
    Demo,
    /// Starts a shell on a machine, or runs a command there
    Ssh {
        /// manager, worker1 or worker2
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
            Self::Up => up(),
            Self::Demo => demo(),
            Self::Ssh { name, command } => ssh(&name, &command),
            Self::Down { purge } => down(purge),
        }
    }
}

/// Runs the machines from their image to the end of the demo, and removes them; the image stays.
///
/// # Errors
/// When a step fails.
pub fn test(package: &Path) -> Result<()> {
    let task = |verb| -> Result<()> {
        run(as_root("env")
            .arg(format!("{PACKAGE}={}", package.display()))
            .arg(this_program()?)
            .args(["machines", verb]))
    };
    let outcome = task("up").and_then(|()| task("demo"));
    task("down")?;
    outcome
}

fn up() -> Result<()> {
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
    let namespace = network::create()?;
    let processes = boot(&namespace, &image, accelerator, &directory, &interrupt)?;
    provision::provision(&image, &package, &interrupt)?;
    for process in processes {
        process.keep();
    }
    namespace.keep();
    say(format!(
        "the machines are up, after {} s",
        started.elapsed().as_secs()
    ));
    println!("{}", BY_HAND.trim());
    Ok(())
}

fn boot(
    namespace: &Namespace,
    image: &Image,
    accelerator: &[&str],
    directory: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<Process>> {
    let start = |node: &node::Node| {
        let process = node.boot(namespace, image, accelerator, directory)?;
        Ok((node.name, Mutex::new(process)))
    };
    let processes = NODES.iter().map(start).collect::<Result<Vec<_>>>()?;
    on_all("machines booted", &NODES, &|node| {
        let process = processes.iter().find(|(name, _)| *name == node.name);
        let (_, process) = process.context("every machine has a process")?;
        let mut process = process.lock().map_err(|_| anyhow!("panicked"))?;
        node.wait_until_booted(&mut process, image, interrupt)
    })?;
    let process = |(_, it): (_, Mutex<Process>)| it.into_inner().map_err(|_| anyhow!("panicked"));
    processes.into_iter().map(process).collect()
}

fn demo() -> Result<()> {
    become_root()?;
    ensure_up()?;
    demo::play(&Image::of(&directory()), &Interrupt::catch()?)
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
  cargo xtask machines demo                            smoke.sh, then memlb before Swarm's routing mesh
  cargo xtask machines down                            removes them

and as root: nsenter --net=/run/netns/memlb-machines curl http://192.168.56.101/
";
