//! A guest: one of Debian's kernels with a few programs, which an emulated machine runs in sequence.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{initramfs::Initramfs, machine::EmulatedMachine, package::Kernel};
use crate::{
    interrupt::Interrupt,
    workspace::{find_program, print_message},
};

/// Modules that the guest's kernel needs for a laboratory.
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

/// The files and tasks of a guest.
#[derive(Debug)]
pub struct Load<'a> {
    pub memlb: &'a Path,
    /// Further modules and programs of this machine.
    pub modules: &'a [&'a str],
    pub programs: &'a [&'a str],
    /// Paths in the guest, each with a file of this machine.
    pub files: Vec<(&'a str, &'a Path)>,
    /// The programs to run, each with the name in the guest's report.
    pub tasks: Vec<(&'a str, &'a Path)>,
    /// One line for each run: name and arguments, in sequence.
    pub script: String,
}

impl<'a> Load<'a> {
    /// A load of one task, without further modules, programs and files.
    pub fn of_task(memlb: &'a Path, name: &'a str, program: &'a Path, arguments: &str) -> Self {
        Self {
            memlb,
            modules: &[],
            programs: &[],
            files: Vec::new(),
            tasks: vec![(name, program)],
            script: format!("{name} {arguments}\n"),
        }
    }
}

/// A machine that is ready to boot.
#[derive(Debug)]
pub struct Guest {
    pub kernel: Kernel,
    machine: EmulatedMachine,
}

impl Guest {
    /// Packs the guest's files in a new `directory`.
    pub fn prepare(kernel: Kernel, directory: PathBuf, load: &Load<'_>) -> Result<Self> {
        // An earlier machine's output must not be read as this one's.
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let initramfs = pack(&kernel, &directory, include_str!("guest.sh"), load)?;
        let machine = EmulatedMachine {
            kernel: kernel.image(),
            initramfs,
            directory,
        };
        Ok(Self { kernel, machine })
    }

    /// Runs the machine until it powers off. Returns its report and the duration.
    pub fn run(&self, deadline: Duration, interrupt: &Interrupt) -> Result<(String, Duration)> {
        print_message(format!("booting Linux {}", self.kernel.release));
        let took = self.machine.run(deadline, interrupt);
        // The archive is large, and every run packs a new one.
        fs::remove_file(&self.machine.initramfs).context("remove the guest's files")?;
        Ok((self.machine.report()?, took?))
    }

    /// Prints the last lines of the programs' and the kernel's output.
    pub fn show_logs(&self) {
        let release = &self.kernel.release;
        for (of, text) in [
            ("kernel", self.machine.console()),
            ("programs", self.machine.report()),
        ] {
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            print_message(format!(
                "--- last output of the {of} on Linux {release} ---\n{last}"
            ));
        }
        print_message(format!(
            "the whole output is in {}",
            self.machine.directory.display()
        ));
    }
}

/// Packs the guest's files to an archive in `directory`, and returns it. The script `init` is the first process.
///
/// # Errors
/// A program, a module or a file is missing.
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
