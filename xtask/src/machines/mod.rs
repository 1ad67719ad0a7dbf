//! The lab of scripts/vagrant on machines under QEMU: Debian 12 with its kernel, systemd and Docker from Debian's
//! packages, without a Vagrant box, provisioned by the same scripts. A fourth machine can be the second manager of a
//! pair.

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
    node::{LAB, MANAGER2, Node, machines},
    provision::on_all,
};
use crate::{
    interrupt::Interrupt,
    package,
    privilege::{is_root, replace_process, restart_as_root, run_as_root, this_program_as_root},
    setup,
    workspace::{print_message, target},
};

/// Variable that names the package for the machines, instead of a new one. scripts/vagrant uses it, too.
const PACKAGE: &str = "MEMLB_PACKAGE";

#[derive(Debug, Subcommand)]
pub enum Machines {
    /// Makes the machines' image, boots the machines, and provisions them as `vagrant up` does
    Up {
        /// Also boots a second manager, and makes the two a pair by keepalived
        #[arg(long)]
        pair: bool,
    },
    /// Runs smoke.sh, then memlb in front of the ports of Swarm's routing mesh; with a pair, a handover, then a crash
    /// and reboot of the active manager
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

/// Boots the machines, runs the demo and removes the machines, first without and then with a pair of managers. The
/// image stays.
///
/// # Errors
/// A step failed.
pub fn test(package: &Path) -> Result<()> {
    let task = |arguments: &[&str]| -> Result<()> {
        run(this_program_as_root(PACKAGE, package)?
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

/// The machines that are up, for measurements.
#[derive(Debug)]
pub struct Lab {
    image: Image,
    /// This machine on their networks.
    pub client: Namespace,
}

impl Lab {
    /// Returns the address of the manager, which serves unless the managers are a pair.
    pub fn manager(&self) -> &'static str {
        LAB[0].address
    }

    pub fn has_pair(&self) -> bool {
        network::has(&self.client, MANAGER2.name)
    }

    /// Returns a command that runs a line of shell on the machine `name`.
    ///
    /// # Errors
    /// When there is no machine of that name.
    pub fn command(&self, name: &str, script: &str) -> Result<Command> {
        let mut ssh = node::find(name)?.ssh(&self.image);
        ssh.arg(script);
        Ok(ssh)
    }
}

/// Runs `work` with the machines, which stay up. Needs root.
///
/// # Errors
/// When no machines are up, or `work` fails.
pub fn with_lab<T>(work: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    ensure_up()?;
    let lab = Lab {
        image: Image::of(&directory()),
        client: Namespace::adopt(NAMESPACE).context("the machines' namespace is there")?,
    };
    let outcome = work(&lab);
    lab.client.keep();
    outcome
}

fn up(pair: bool) -> Result<()> {
    ensure!(
        !Namespace::exists(NAMESPACE),
        "the machines are up, or earlier ones were not removed: `cargo xtask machines down` removes them"
    );
    let package = match env::var_os(PACKAGE) {
        Some(given) => fs::canonicalize(&given)
            .with_context(|| format!("find the package {}", Path::new(&given).display()))?,
        None => package::make()?,
    };
    setup::for_machines()?;
    if !is_root() {
        return Err(restart_as_root(PACKAGE, &package));
    }
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
    print_message(format!(
        "the machines are up, after {} s",
        started.elapsed().as_secs()
    ));
    println!("{USAGE}");
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
    run_as_root()?;
    let interrupt = Interrupt::catch()?;
    with_lab(|lab| match lab.has_pair() {
        true => pair::run(&lab.image, &lab.client, &interrupt),
        false => demo::run(&lab.image, &interrupt),
    })
}

fn ssh(name: &str, command: &[String]) -> Result<()> {
    let node = node::find(name)?;
    run_as_root()?;
    ensure_up()?;
    let mut ssh = node.ssh(&Image::of(&directory()));
    ssh.args(command);
    Err(replace_process(ssh))
}

fn down(purge: bool) -> Result<()> {
    run_as_root()?;
    match Namespace::adopt(NAMESPACE) {
        // Dropping it ends all processes in it.
        Some(namespace) => {
            drop(namespace);
            print_message("the machines are down");
        }
        None => print_message("no machines are up"),
    }
    let directory = directory();
    if purge && directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
        print_message(format!("{} is removed", directory.display()));
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

fn directory() -> PathBuf {
    target().join("machines")
}

const USAGE: &str = "
  cargo xtask machines ssh manager sudo memlb status   what is selected, and why
  cargo xtask machines ssh worker1                     a shell there
  cargo xtask machines demo                            smoke.sh and the routing mesh, or a pair's handover and crash
  cargo xtask machines down                            removes them

and as root: nsenter --net=/run/netns/memlb-machines curl http://192.168.56.101/
";
