//! The machines of scripts/vagrant/Vagrantfile, under QEMU.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memlb_tests::{Namespace, Process, command::output, wait_for};

use super::{image::Image, network};
use crate::interrupt::Interrupt;

/// A machine of the lab.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    pub name: &'static str,
    /// Address in the lab's network, card eth1.
    pub address: &'static str,
    /// Address in the network of SSH, card eth0.
    ssh: &'static str,
    pub role: &'static str,
}

const fn node(
    name: &'static str,
    role: &'static str,
    address: &'static str,
    ssh: &'static str,
) -> Node {
    Node {
        name,
        address,
        ssh,
        role,
    }
}

static NODES: [Node; 4] = [
    node("manager", "manager", "192.168.56.101", "10.56.0.101"),
    node("worker1", "worker", "192.168.56.103", "10.56.0.103"),
    node("worker2", "worker", "192.168.56.104", "10.56.0.104"),
    node("manager2", "manager", "192.168.56.102", "10.56.0.102"),
];

/// The machines of Vagrant's lab, the manager first.
pub static LAB: &[Node] = NODES.split_at(3).0;
/// The second manager of a pair.
pub static MANAGER2: &Node = &NODES[3];

/// Returns the lab's machines, with the second manager of a `pair`.
pub fn machines(pair: bool) -> &'static [Node] {
    if pair { &NODES } else { LAB }
}

/// As in the Vagrantfile.
const MEMORY_MB: &str = "700";

/// Folder for files that are copied to a machine, as in the Vagrantfile.
pub const UPLOADS: &str = "/tmp/memlb";

/// Deadline for the boot, also on a busy machine.
const BOOTING: Duration = Duration::from_secs(15 * 60);

/// Returns the machine `name`.
pub fn find(name: &str) -> Result<&'static Node> {
    let found = NODES.iter().find(|node| node.name == name);
    found.with_context(|| {
        let names: Vec<_> = NODES.iter().map(|node| node.name).collect();
        format!("there is no machine {name}; expected {}", names.join(", "))
    })
}

impl Node {
    /// Boots the machine. Its writes to the disk are lost when it ends.
    pub fn boot(
        &self,
        namespace: &Namespace,
        image: &Image,
        accelerator: &[&str],
        directory: &Path,
    ) -> Result<Process> {
        let command_line = format!(
            "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 panic=-1 mitigations=off systemd.default_timeout_start_sec=900 systemd.hostname={} \
             ip={}:::255.255.255.0::eth0:none ip={}:::255.255.255.0::eth1:none",
            self.name, self.ssh, self.address
        );
        // At a lower priority than other processes of this machine.
        let mut qemu = namespace.command("nice");
        qemu.args(["-n", "10", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(accelerator)
            .args(["-smp", "1", "-m", MEMORY_MB])
            .args(["-append", &command_line])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .arg("-drive")
            .arg(format!(
                "file={},format=raw,if=virtio,snapshot=on",
                image.disk.display()
            ))
            .arg("-serial")
            .arg(format!("file:{}", self.console(directory).display()))
            .args(["-device", "virtio-rng-pci"])
            // For the temporary file with the machine's writes.
            .env("TMPDIR", directory);
        for (number, tap) in network::taps(self.name).iter().enumerate() {
            let last: u32 = self.address.rsplit('.').next().unwrap_or("0").parse()?;
            qemu.arg("-netdev")
                .arg(format!(
                    "tap,id=eth{number},ifname={tap},script=no,downscript=no"
                ))
                .arg("-device")
                .arg(format!(
                    "virtio-net-pci,netdev=eth{number},mac=52:54:00:56:{number:02}:{last:02x},romfile="
                ));
        }
        Process::start(
            self.name,
            &mut qemu,
            &directory.join(format!("{}.log", self.name)),
        )
    }

    /// Waits until systemd has started all units.
    pub fn wait_until_booted(
        &self,
        process: &mut Process,
        image: &Image,
        interrupt: &Interrupt,
    ) -> Result<()> {
        // The command fails if the state is "degraded".
        let command = "systemctl is-system-running --wait || true";
        let state = wait_for(BOOTING, &format!("{} to boot", self.name), || {
            if interrupt.is_requested() || !process.is_running() {
                return Some(None);
            }
            let state = self.run(image, command).ok()?.trim().to_owned();
            let is_final = ["running", "degraded"].contains(&state.as_str());
            is_final.then_some(Some(state))
        })?;
        interrupt.check()?;
        match state.as_deref() {
            Some("running") => Ok(()),
            Some(_) => {
                let failed = self.run(image, "systemctl --failed --no-legend")?;
                bail!("services of {} have failed: {failed}", self.name)
            }
            None => bail!("{} has ended: {}", self.name, process.log().trim()),
        }
    }

    /// Runs a shell command on the machine, and returns its output.
    pub fn run(&self, image: &Image, script: &str) -> Result<String> {
        output(self.ssh(image).arg(script))
    }

    /// Runs a script of this machine there as root, as Vagrant does.
    pub fn run_script(&self, image: &Image, script: &Path, arguments: &[&str]) -> Result<String> {
        let name = script.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no name", script.display()))?;
        self.upload(image, script, name)?;
        let arguments = arguments.join(" ");
        self.run(image, &format!("sudo bash {UPLOADS}/{name} {arguments}"))
    }

    /// Copies a file to [`UPLOADS`] of the machine, as `name`.
    pub fn upload(&self, image: &Image, file: &Path, name: &str) -> Result<()> {
        let content = File::open(file).with_context(|| format!("open {}", file.display()))?;
        let mut ssh = self.ssh(image);
        ssh.arg(format!("mkdir -p {UPLOADS} && cat >{UPLOADS}/{name}"))
            .stdin(content);
        output(&mut ssh).map(drop)
    }

    /// Returns an SSH client of the machine, to be completed with a command.
    pub fn ssh(&self, image: &Image) -> Command {
        let mut ssh = Command::new("nsenter");
        ssh.arg(format!("--net=/run/netns/{}", network::NAMESPACE))
            .args(["ssh", "-o", "LogLevel=ERROR", "-i"])
            .arg(&image.key)
            // Each image has a new host key, and the machines hold no secrets.
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args([
                "-o",
                "ConnectTimeout=60",
                "-o",
                "IdentitiesOnly=yes",
                "-F",
                "none",
            ])
            .arg(format!("vagrant@{}", self.ssh));
        ssh
    }

    fn console(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.console", self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::LAB;
    use crate::workspace::root;

    #[test]
    fn has_the_machines_of_the_vagrantfile() {
        let file = root().join("scripts/vagrant/Vagrantfile");
        let text = fs::read_to_string(file).expect("the Vagrantfile is there");
        for node in LAB {
            let address = match node.role {
                "manager" => format!("MANAGER = \"{}\"", node.address),
                _ => format!("address: \"{}\"", node.address),
            };
            assert!(
                text.contains(&format!("\"{}\" => {{", node.name)),
                "{node:?}"
            );
            assert!(text.contains(&address), "{node:?}");
        }
    }
}
