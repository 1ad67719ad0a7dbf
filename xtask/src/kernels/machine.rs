//! The emulated machine: one processor, network cards on one cable, two serial ports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use memlb_tests::{Process, wait_for};

use crate::interrupt::Interrupt;

/// How many cards the machine has: for a client, the manager and two workers.
const CARDS: u32 = 4;

#[derive(Debug)]
pub struct Machine {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Where what it says is written.
    pub directory: PathBuf,
}

impl Machine {
    /// Runs the machine until it switches itself off. Returns how long that took.
    ///
    /// # Errors
    /// When it has not within `deadline`; then it is switched off.
    pub fn run(&self, deadline: Duration, interrupt: &Interrupt) -> Result<Duration> {
        let started = Instant::now();
        let mut qemu = Process::start("qemu", &mut self.command(), &self.file("qemu.log"))?;
        wait_for(deadline, "the machine to switch itself off", || {
            (!qemu.is_running() || interrupt.is_requested()).then_some(())
        })?;
        interrupt.check()?;
        let status = qemu.wait(Duration::from_secs(1))?;
        if !status.success() {
            bail!("qemu ended with {status}: {}", qemu.log().trim());
        }
        Ok(started.elapsed())
    }

    /// What came out of the serial port of the tests.
    pub fn report(&self) -> Result<String> {
        read(&self.file("report.log"))
    }

    /// What came out of the serial port of the kernel.
    pub fn console(&self) -> Result<String> {
        read(&self.file("console.log"))
    }

    fn command(&self) -> Command {
        // Emulation takes all of a processor, and slower emulation changes nothing in the guest: whatever
        // else runs on this machine goes first.
        let mut qemu = Command::new("chrt");
        qemu.args(["--idle", "0", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            // KVM is not everywhere, and not everywhere where it seems to be.
            .args(["-accel", "tcg", "-smp", "1", "-m", "1024"])
            // A newer one has further features that are emulated slowly and used often.
            .args(["-cpu", "qemu64"])
            // Its time passes by its instructions, so that no load on this machine is a silence there.
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
