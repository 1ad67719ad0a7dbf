//! Virtual machines on the two hosts of a worker's move.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memlb_tests::{
    Namespace, Node, Process,
    cluster_options::worker_port,
    command::output,
    migration::{Application, add_host},
};
use tempfile::TempDir;

use super::{
    clients::Targets,
    criu::{self, SerialShell},
    machine,
    qmp::Qmp,
    quantities::Usage,
    scenario::{Between, Method, PORT, Silence},
    testbed::{MoveStats, Network, Testbed},
};
use crate::{
    emulated::SERIES,
    processor::{Timing, of_process, resident},
};
use xtask::kernels::{Kernel, Load, cache, pack};

/// The kernel's verifier takes long in an emulated machine.
const BOOTING: Duration = Duration::from_secs(90);
const PATIENCE: Duration = Duration::from_secs(20);
/// The guest's file of the memory that its agent reports: more than the other worker's.
const MEMORY: &str = "/etc/meminfo";
const ROLES: [&str; 2] = ["source", "destination"];

#[derive(Debug)]
pub struct Guests {
    // In the order of their end.
    qemus: [Qemu; 2],
    _other: Application,
    network: Network,
    /// Of source and destination, if CRIU moves the worker.
    shells: Vec<SerialShell>,
    method: Method,
    between: Between,
    directory: TempDir,
}

/// A QEMU process on one of the hosts.
#[derive(Debug)]
struct Qemu {
    process: Process,
    qmp: Qmp,
}

impl Guests {
    /// Boots a machine with the worker on the first host. On the second host, a QEMU waits for the machine, or, if CRIU
    /// moves the server alone, another machine boots.
    pub fn build(method: Method, between: Between) -> Result<Self> {
        let mut network = Network::build(between, false)?;
        let prefix = network.prefix()?;
        let topology = network.topology_mut();
        let other = Application::start(&topology.workers[1], PORT)?;
        let address = topology.workers[0].address();
        add_host(topology, &prefix)?;
        let [first, .., second] = network.topology().workers.as_slice() else {
            bail!("there is no second host");
        };
        let hosts = [first, second];
        for host in hosts {
            plug_in(host)?;
        }
        let kernel = Kernel::provide(SERIES, &cache())?;
        let directory = tempfile::Builder::new().prefix("memlb-bench-").tempdir()?;
        let address = address.to_string();
        let boot = Boot {
            kernel: &kernel.image(),
            initramfs: &pack_guest(
                &kernel,
                &network,
                (method, between),
                &address,
                directory.path(),
            )?,
            directory: directory.path(),
        };
        let start = |index| boot.start(hosts[index], method, index);
        let qemus = [start(0)?, start(1)?];
        let mut shells = Vec::new();
        if method == Method::Criu {
            for role in ROLES {
                shells.push(SerialShell::connect(&boot.shell_socket(role))?);
            }
        }
        if let Network::Memlb(cluster) = &mut network {
            cluster.start_agent(1)?;
            cluster.wait_for_state("worker1", "up", BOOTING)?;
            cluster.wait_for_state("worker2", "up", PATIENCE)?;
            cluster.wait_for_selection("worker1", PATIENCE)?;
        }
        for shell in &mut shells {
            shell.wait_until_ready()?;
        }
        Ok(Self {
            qemus,
            _other: other,
            network,
            shells,
            method,
            between,
            directory,
        })
    }
}

impl Testbed for Guests {
    fn client(&self) -> &Namespace {
        &self.network.topology().client
    }

    fn targets(&self) -> Targets {
        self.network.targets(self.between)
    }

    fn usage(&self, timing: &Timing) -> Result<Usage> {
        let (mut time, mut bytes) = (Duration::ZERO, 0);
        for Qemu { process, .. } in &self.qemus {
            time += of_process(process.pid())?;
            bytes += resident(process.pid())?;
        }
        self.network.usage(timing, time, Some(bytes))
    }

    fn migrate(&mut self, silence: Silence) -> Result<MoveStats> {
        let network = &self.network;
        match self.method {
            Method::Criu => criu::migrate(&mut self.shells, network, silence),
            Method::Machine | Method::Process => {
                let [source, _] = &mut self.qemus;
                machine::migrate(&mut source.qmp, self.directory.path(), network, silence)
            }
        }
    }
}

/// Connects a host's card and the machine's tap device by a bridge.
fn plug_in(host: &Node) -> Result<()> {
    host.drop_address()?;
    for arguments in [
        &["link", "add", "inside", "type", "bridge"][..],
        &["link", "set", "inside", "up"],
        &["tuntap", "add", "tap0", "mode", "tap"],
        &["link", "set", "tap0", "master", "inside", "up"],
        &["link", "set", "eth1", "master", "inside"],
    ] {
        output(host.ip().args(arguments))?;
    }
    Ok(())
}

/// Packs the guest's files: this program as the server, memlb as the agent.
fn pack_guest(
    kernel: &Kernel,
    network: &Network,
    (method, between): (Method, Between),
    address: &str,
    directory: &Path,
) -> Result<PathBuf> {
    let mut settings = format!("ADDRESS={address}/24\nPORT={PORT}\nAGENT=\nTRANSLATES=\n");
    let here = env::current_exe().context("find this program")?;
    let memory = directory.join("meminfo");
    let (mut files, mut memlb) = (Vec::new(), here.clone());
    if let Network::Memlb(cluster) = network {
        fs::copy(cluster.memory[0].path(), &memory).context("copy the memory to report")?;
        memlb.clone_from(&cluster.binary);
        let mut agent = format!(
            "--name worker1 --manager {} --memory-file {MEMORY}",
            cluster.heartbeat_address()
        );
        if between == Between::MemlbDsr {
            // The cluster's own service has mode dsr, too.
            let web = format!("{}={}", cluster.service(), worker_port(0)?);
            agent += " --interface eth0";
            for translation in between.translations().into_iter().chain([web]) {
                agent += &format!(" --dsr {translation}");
            }
            settings += "TRANSLATES=yes\n";
        }
        settings += &format!("AGENT=\"{agent}\"\n");
        files.push((MEMORY, memory.as_path()));
    }
    let file = directory.join("worker");
    fs::write(&file, settings).context("write the guest's settings")?;
    files.push(("/worker", &file));
    let (modules, programs) = match method {
        Method::Criu => (criu::MODULES, criu::PROGRAMS),
        Method::Machine | Method::Process => Default::default(),
    };
    let load = Load {
        modules,
        programs,
        files,
        ..Load::of_task(&memlb, "server", &here, "")
    };
    pack(kernel, directory, include_str!("guest.sh"), &load)
}

struct Boot<'a> {
    kernel: &'a Path,
    initramfs: &'a Path,
    directory: &'a Path,
}

impl Boot<'_> {
    /// Starts the source's QEMU (`index` 0) or the destination's.
    fn start(&self, host: &Node, method: Method, index: usize) -> Result<Qemu> {
        let role = ROLES[index];
        let socket = self.directory.join(role);
        let console = self.directory.join(format!("{role}.console"));
        // A machine that moves keeps its link address.
        let (mut parameters, mut link_address) = (String::new(), 0x67);
        let mut further = Vec::new();
        if method == Method::Criu {
            parameters = format!("ROLE={role} OWN={}/24", criu::OWN[index]);
            link_address += index;
            let shell = self.shell_socket(role);
            let serial = format!("unix:{},server=on,wait=off", shell.display());
            further.extend(["-serial".to_owned(), serial]);
        } else if index > 0 {
            further.extend(["-incoming".to_owned(), machine::channel(self.directory)]);
        }
        // At idle priority, because emulation uses a whole processor.
        let mut qemu = host.command("chrt");
        qemu.args(["--idle", "0", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            // KVM is not available everywhere, and does not work on all machines that have its device.
            .args(["-display", "none", "-accel", "tcg", "-cpu", "qemu64"])
            .args(["-smp", "1", "-m", "384", "-kernel"])
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 {parameters}"),
            ])
            .args(["-netdev", "tap,id=card,ifname=tap0,script=no,downscript=no"])
            .arg("-device")
            .arg(format!(
                "virtio-net-pci,netdev=card,mac=52:54:00:38:01:{link_address:02x},romfile="
            ))
            .args(["-serial", &format!("file:{}", console.display())])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(further);
        let log = self.directory.join(format!("{role}.log"));
        let process = Process::start(&format!("the {role} QEMU"), &mut qemu, &log)?;
        let qmp = Qmp::connect(&socket).with_context(|| process.log())?;
        Ok(Qemu { process, qmp })
    }

    fn shell_socket(&self, role: &str) -> PathBuf {
        self.directory.join(format!("{role}.shell"))
    }
}
