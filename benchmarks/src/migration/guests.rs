//! Virtual machines on the two hosts between which a worker moves.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memlb_tests::{
    Namespace, Node, Process,
    cluster::worker_port,
    command::output,
    kernel::Series,
    migration::{Application, add_host},
};
use tempfile::TempDir;

use super::{
    clients::Targets,
    criu::{self, Orders},
    machine,
    qmp::Qmp,
    quantities::Usage,
    scenario::{Between, PORT, Silence, What},
    scene::{Moved, Scene, System},
};
use crate::processor::{Timing, of_process, resident};
use xtask::kernels::{Kernel, Load, cache, pack};

const SERIES: Series = Series {
    major: 6,
    minor: 12,
};
/// Emulation takes its time, above all the kernel's verifier.
const BOOTING: Duration = Duration::from_secs(90);
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the guest finds the memory that its agent reports: more than the other worker's.
const MEMORY: &str = "/etc/meminfo";
const ROLES: [&str; 2] = ["source", "destination"];

#[derive(Debug)]
pub struct Guests {
    // In the order in which they end.
    pub qemus: [Qemu; 2],
    _other: Application,
    pub system: System,
    /// Those of the source, and those of the destination, if CRIU moves the worker.
    pub orders: Vec<Orders>,
    what: What,
    between: Between,
    directory: TempDir,
}

/// A QEMU process on one of the hosts.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    pub qmp: Qmp,
}

impl Guests {
    /// Boots a machine with the worker on the first host. On the second one, a QEMU waits for it if it moves as a whole,
    /// and another machine boots if CRIU moves the server alone.
    pub fn build(what: What, between: Between) -> Result<Self> {
        let mut system = System::build(between, false)?;
        let prefix = system.prefix()?;
        let topology = system.topology_mut();
        let other = Application::start(&topology.workers[1], PORT)?;
        let address = topology.workers[0].address();
        add_host(topology, &prefix)?;
        let [first, .., second] = system.topology().workers.as_slice() else {
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
                &system,
                (what, between),
                &address,
                directory.path(),
            )?,
            directory: directory.path(),
        };
        let start = |index| boot.start(hosts[index], what, index);
        let qemus = [start(0)?, start(1)?];
        let mut orders = Vec::new();
        if what == What::Criu {
            for role in ROLES {
                orders.push(Orders::connect(&boot.socket_of_orders(role))?);
            }
        }
        if let System::Memlb(cluster) = &mut system {
            cluster.start_agent(1)?;
            cluster.wait_for_state("worker1", "up", BOOTING)?;
            cluster.wait_for_state("worker2", "up", PATIENCE)?;
            cluster.wait_for_selection("worker1", PATIENCE)?;
        }
        for orders in &mut orders {
            orders.wait_until_taken()?;
        }
        Ok(Self {
            qemus,
            _other: other,
            system,
            orders,
            what,
            between,
            directory,
        })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Scene for Guests {
    fn client(&self) -> &Namespace {
        &self.system.topology().client
    }

    fn targets(&self) -> Targets {
        self.system.targets(self.between)
    }

    fn usage(&self, timing: &Timing) -> Result<Usage> {
        let (mut time, mut bytes) = (Duration::ZERO, 0);
        for Qemu { process, .. } in &self.qemus {
            time += of_process(process.pid())?;
            bytes += resident(process.pid())?;
        }
        self.system.usage(timing, time, Some(bytes))
    }

    fn migrate(&mut self, silence: Silence) -> Result<Moved> {
        match self.what {
            What::Criu => criu::migrate(self, silence),
            What::Machine | What::Process => machine::migrate(self, silence),
        }
    }
}

/// Makes a host's card a port of a switch, at which the machine's card is another one.
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

/// Packs the guest's files: this program as its server, memlb as its agent.
fn pack_guest(
    kernel: &Kernel,
    system: &System,
    (what, between): (What, Between),
    address: &str,
    directory: &Path,
) -> Result<PathBuf> {
    let mut settings = format!("ADDRESS={address}/24\nPORT={PORT}\nAGENT=\nTRANSLATES=\n");
    let here = env::current_exe().context("find this program")?;
    let memory = directory.join("meminfo");
    let (mut files, mut memlb) = (Vec::new(), here.clone());
    if let System::Memlb(cluster) = system {
        fs::copy(cluster.memory[0].path(), &memory).context("copy the memory to report")?;
        memlb.clone_from(&cluster.binary);
        let mut agent = format!(
            "--name worker1 --manager {} --memory-file {MEMORY}",
            cluster.heartbeat_address()
        );
        if between == Between::MemlbDsr {
            // The cluster's own service is one of mode dsr, too.
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
    let (modules, programs) = match what {
        What::Criu => (criu::MODULES, criu::PROGRAMS),
        What::Machine | What::Process => Default::default(),
    };
    let load = Load {
        memlb: &memlb,
        modules,
        programs,
        files,
        tasks: vec![("server", &here)],
        script: String::new(),
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
    fn start(&self, host: &Node, what: What, index: usize) -> Result<Qemu> {
        let role = ROLES[index];
        let socket = self.directory.join(role);
        let console = self.directory.join(format!("{role}.console"));
        // A machine takes its link address along.
        let (mut parameters, mut link_address) = (String::new(), 0x67);
        let mut further = Vec::new();
        if what == What::Criu {
            parameters = format!("ROLE={role} OWN={}/24", criu::OWN[index]);
            link_address += index;
            let orders = self.socket_of_orders(role);
            let serial = format!("unix:{},server=on,wait=off", orders.display());
            further.extend(["-serial".to_owned(), serial]);
        } else if index > 0 {
            further.extend(["-incoming".to_owned(), machine::channel(self.directory)]);
        }
        // Whatever else runs on this machine goes first.
        let mut qemu = host.command("chrt");
        qemu.args(["--idle", "0", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            // KVM is not everywhere, and not everywhere where it seems to be.
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

    fn socket_of_orders(&self, role: &str) -> PathBuf {
        self.directory.join(format!("{role}.orders"))
    }
}
