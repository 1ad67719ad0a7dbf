//! The emulated machine: one processor, network cards on one hub, two serial ports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use memlb_tests::{Process, wait_for};

use crate::interrupt::Interrupt;

/// Network cards of the machine: for a client, the manager and two workers.
const CARDS: u32 = 4;

#[derive(Debug)]
pub struct EmulatedMachine {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The folder of its output.
    pub directory: PathBuf,
}

impl EmulatedMachine {
    /// Runs the machine until it powers off. Returns the duration.
    ///
    /// # Errors
    /// It has not powered off within `deadline`. Then it is killed.
    pub fn run(&self, deadline: Duration, interrupt: &Interrupt) -> Result<Duration> {
        let started = Instant::now();
        let mut qemu = Process::start("qemu", &mut self.command(), &self.file("qemu.log"))?;
        wait_for(deadline, "the machine to power off", || {
            (!qemu.is_running() || interrupt.is_requested()).then_some(())
        })?;
        interrupt.check()?;
        let status = qemu.wait(Duration::from_secs(1))?;
        if !status.success() {
            bail!("qemu ended with {status}: {}", qemu.log().trim());
        }
        Ok(started.elapsed())
    }

    /// The output of the tests, on their serial port.
    pub fn report(&self) -> Result<String> {
        read(&self.file("report.log"))
    }

    /// The output of the kernel, on its serial port.
    pub fn console(&self) -> Result<String> {
        read(&self.file("console.log"))
    }

    fn command(&self) -> Command {
        // At idle priority: emulation uses a whole processor, and slower emulation changes nothing in the guest.
        let mut qemu = Command::new("chrt");
        qemu.args(["--idle", "0", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            // KVM is not available everywhere, and does not work on all machines that have its device.
            .args(["-accel", "tcg", "-smp", "1", "-m", "1024"])
            // Newer processors have features that are emulated slowly and used often.
            .args(["-cpu", "qemu64"])
            // The guest's clock counts its instructions, so that load on this machine does not delay the guest.
            .args(["-icount", "shift=0,sleep=off"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1"]);
        for port in ["console.log", "report.log"] {
            qemu.arg("-serial")
                .arg(format!("file:{}", self.file(port).display()));
        }
        for card in 0..CARDS {
            qemu.arg("-netdev")
                .arg(format!("hubport,hubid=0,id=card{card}"))
                .arg("-device")
                .arg(format!("virtio-net-pci,netdev=card{card},romfile="));
        }
        qemu
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn read(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}
