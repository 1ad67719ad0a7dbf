//! A worker that is a virtual machine, which QEMU moves by pre-copy while it runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use memlb_tests::{
    Namespace, Node, Process,
    cluster::worker_port,
    command::output,
    kernel::Series,
    migration::{Application, add_host},
    wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    clients::Targets,
    qmp::Qmp,
    quantities::Usage,
    scenario::{Between, PORT, Silence},
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
const MIGRATING: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the guest finds the memory that its agent reports: more than the other worker's.
const MEMORY: &str = "/etc/meminfo";

#[derive(Debug)]
pub struct MachineScene {
    // In the order in which they end.
    source: Qemu,
    destination: Qemu,
    _other: Application,
    system: System,
    between: Between,
    directory: TempDir,
}

/// A QEMU process on one of the hosts.
#[derive(Debug)]
struct Qemu {
    process: Process,
    qmp: Qmp,
}

impl MachineScene {
    /// Boots the machine on the first host, and starts a QEMU on the second one that waits for it.
    pub fn build(between: Between) -> Result<Self> {
        let mut system = System::build(between, false)?;
        let prefix = system.prefix()?;
        let topology = system.topology_mut();
        let other = Application::start(&topology.workers[1], PORT)?;
        let address = topology.workers[0].address();
        add_host(topology, &prefix)?;
        let [first, .., second] = topology.workers.as_slice() else {
            bail!("there is no second host");
        };
        plug_in(first)?;
        plug_in(second)?;
        let kernel = Kernel::provide(SERIES, &cache())?;
        let directory = tempfile::Builder::new().prefix("memlb-bench-").tempdir()?;
        let initramfs = pack_guest(
            &kernel,
            &system,
            between,
            &address.to_string(),
            directory.path(),
        )?;
        let boot = Boot {
            kernel: &kernel.image(),
            initramfs: &initramfs,
            directory: directory.path(),
        };
        let [first, .., second] = system.topology().workers.as_slice() else {
            bail!("there is no second host");
        };
        let source = Qemu::start(first, &boot, "source", &[])?;
        let destination = Qemu::start(
            second,
            &boot,
            "destination",
            &["-incoming", &channel(boot.directory)],
        )?;
        if let System::Memlb(cluster) = &mut system {
            cluster.start_agent(1)?;
            cluster.wait_for_state("worker1", "up", BOOTING)?;
            cluster.wait_for_state("worker2", "up", PATIENCE)?;
            cluster.wait_for_selection("worker1", PATIENCE)?;
        }
        Ok(Self {
            source,
            destination,
            _other: other,
            system,
            between,
            directory,
        })
    }
}

impl Scene for MachineScene {
    fn client(&self) -> &Namespace {
        &self.system.topology().client
    }

    fn targets(&self) -> Targets {
        self.system.targets(self.between)
    }

    fn usage(&self, timing: &Timing) -> Result<Usage> {
        let processes = [&self.source.process, &self.destination.process];
        let (mut time, mut bytes) = (Duration::ZERO, 0);
        for process in processes {
            time += of_process(process.pid())?;
            bytes += resident(process.pid())?;
        }
        self.system.usage(timing, time, Some(bytes))
    }

    fn migrate(&mut self, silence: Silence) -> Result<Moved> {
        self.system.announce(silence)?;
        let pauses = silence != Silence::Short;
        let capability = json!([{ "capability": "pause-before-switchover", "state": pauses }]);
        let source = &mut self.source.qmp;
        source.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capability }),
        )?;
        source.execute("migrate", json!({ "uri": channel(self.directory.path()) }))?;
        if pauses {
            wait_for_migration(source, "pre-switchover")?;
            // The machine stands still already.
            let still = Instant::now();
            thread::sleep(silence.duration().saturating_sub(still.elapsed()));
            source.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
        }
        let migration = wait_for_migration(source, "completed")?;
        self.system.announce_end(silence)?;
        let figure = |name: &str| {
            migration[name]
                .as_f64()
                .with_context(|| format!("QEMU tells {name}"))
        };
        Ok(Moved {
            still_ms: figure("downtime")?,
            bytes: migration["ram"]["transferred"]
                .as_u64()
                .context("QEMU tells what it moved")?,
        })
    }
}

fn wait_for_migration(qmp: &mut Qmp, status: &str) -> Result<Value> {
    wait_for(
        MIGRATING,
        &format!("the migration to be {status}"),
        || match qmp.execute("query-migrate", json!({})) {
            Ok(migration) if migration["status"] == status => Some(Ok(migration)),
            Ok(migration) if migration["status"] == "failed" => {
                Some(Err(anyhow::anyhow!("the migration failed: {migration}")))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        },
    )?
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
    between: Between,
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
    let load = Load {
        memlb: &memlb,
        modules: &[],
        programs: &[],
        files,
        tasks: vec![("server", &here)],
        script: String::new(),
    };
    pack(kernel, directory, include_str!("machine.sh"), &load)
}

struct Boot<'a> {
    kernel: &'a Path,
    initramfs: &'a Path,
    directory: &'a Path,
}

/// Where the one QEMU listens and the other one connects.
fn channel(directory: &Path) -> String {
    format!("unix:{}", directory.join("channel").display())
}

impl Qemu {
    fn start(host: &Node, boot: &Boot<'_>, name: &str, further: &[&str]) -> Result<Self> {
        let socket = boot.directory.join(name);
        let console = boot.directory.join(format!("{name}.console"));
        // Whatever else runs on this machine goes first.
        let mut qemu = host.command("chrt");
        qemu.args(["--idle", "0", "qemu-system-x86_64"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            // KVM is not everywhere, and not everywhere where it seems to be.
            .args(["-accel", "tcg", "-smp", "1", "-m", "384", "-cpu", "qemu64"])
            .arg("-kernel")
            .arg(boot.kernel)
            .arg("-initrd")
            .arg(boot.initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .args(["-netdev", "tap,id=card,ifname=tap0,script=no,downscript=no"])
            .args([
                "-device",
                "virtio-net-pci,netdev=card,mac=52:54:00:38:01:67,romfile=",
            ])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", socket.display()),
            ])
            .args(further);
        let log = boot.directory.join(format!("{name}.log"));
        let process = Process::start(&format!("the {name} QEMU"), &mut qemu, &log)?;
        let qmp = Qmp::connect(&socket).with_context(|| process.log())?;
        Ok(Self { process, qmp })
    }
}
