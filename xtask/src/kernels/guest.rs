//! A guest: one of Debian's kernels with a few programs, in an emulated machine that runs them one after
//! the other.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{initramfs::Initramfs, machine::Machine, package::Kernel};
use crate::{
    interrupt::Interrupt,
    workspace::{find_program, say},
};

/// The modules that the guest's kernel needs for a laboratory.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
];

/// The programs of a laboratory, without memlb.
const PROGRAMS: &[&str] = &["busybox", "ip", "tc", "ethtool", "nsenter", "nginx"];

const SHOWN_LINES: usize = 100;

/// What a guest has and does.
#[derive(Debug)]
pub struct Load<'a> {
    pub memlb: &'a Path,
    /// Further modules and programs of this machine.
    pub modules: &'a [&'a str],
    pub programs: &'a [&'a str],
    /// Files of this machine, each with its place in the guest.
    pub files: Vec<(&'a str, &'a Path)>,
    /// What it runs, by the name under which it is reported.
    pub tasks: Vec<(&'a str, &'a Path)>,
    /// The names again, in their order, with the arguments: a line each.
    pub script: String,
}

/// A machine that is ready to be switched on.
#[derive(Debug)]
pub struct Guest {
    pub kernel: Kernel,
    machine: Machine,
}

impl Guest {
    /// Puts everything together in a new `directory`.
    pub fn prepare(kernel: Kernel, directory: PathBuf, load: &Load<'_>) -> Result<Self> {
        // What an earlier machine has said must not be taken for this one's words.
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let initramfs = pack(&kernel, &directory, include_str!("guest.sh"), load)?;
        let machine = Machine {
            kernel: kernel.image(),
            initramfs,
            directory,
        };
        Ok(Self { kernel, machine })
    }

    /// Runs the machine until it switches itself off. Returns what it has said, and how long it took.
    pub fn run(&self, deadline: Duration, interrupt: &Interrupt) -> Result<(String, Duration)> {
        say(format!("booting Linux {}", self.kernel.release));
        let took = self.machine.run(deadline, interrupt);
        // Large, and made again each time.
        fs::remove_file(&self.machine.initramfs).context("remove the guest's files")?;
        Ok((self.machine.report()?, took?))
    }

    /// Shows the ends of what the programs and the kernel have said.
    pub fn show_logs(&self) {
        let release = &self.kernel.release;
        for (of, text) in [
            ("kernel", self.machine.console()),
            ("programs", self.machine.report()),
        ] {
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            say(format!(
                "--- the end of what the {of} said on Linux {release} ---\n{last}"
            ));
        }
        say(format!(
            "all of it is in {}",
            self.machine.directory.display()
        ));
    }
}

/// Packs the guest's files to an archive in `directory`, and returns it. The script `init` is the first process.
///
/// # Errors
/// When a program, a module or a file is missing.
pub fn pack(kernel: &Kernel, directory: &Path, init: &str, load: &Load<'_>) -> Result<PathBuf> {
    let files = Initramfs::new(directory)?;
    files.add_text(init, "/init")?;
    files.add_text("root:x:0:0:root:/tmp:/bin/false\n", "/etc/passwd")?;
    files.add_text("root:x:0:\n", "/etc/group")?;
    let modules = [MODULES, load.modules].concat();
    for (number, module) in (100..).zip(kernel.modules(&modules)?) {
        files.add_module(&module, &format!("/modules/{number}.ko"))?;
    }
    for name in [PROGRAMS, load.programs].concat() {
        let program = find_program(name).with_context(|| format!("there is no {name}"))?;
        files.add_program(&program, &format!("/bin/{name}"))?;
    }
    files.add_program(load.memlb, "/bin/memlb")?;
    for (place, file) in &load.files {
        files.add_file(file, place)?;
    }
    for (name, program) in &load.tasks {
        files.add_program(program, &format!("/tasks/{name}"))?;
    }
    files.add_text(&load.script, "/tasks/list")?;
    let archive = directory.join("initramfs.cpio");
    files.pack(&archive)?;
    Ok(archive)
}
