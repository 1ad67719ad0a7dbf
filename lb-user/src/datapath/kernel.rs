//! What the kernel and this process must offer, checked before anything is touched.

use anyhow::{Context, Result, bail};
use aya::util::KernelVersion;
use procfs::process::Process;

/// `bpf_loop` is the newest thing the programs need (Linux 5.17).
const OLDEST_KERNEL: (u8, u8) = (5, 17);

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Checks privileges and kernel.
pub fn check() -> Result<()> {
    check_privileges()?;
    let (major, minor) = OLDEST_KERNEL;
    if !is_at_least(major, minor)? {
        bail!("this kernel is too old: memlb needs Linux {major}.{minor} or newer (see uname -r)");
    }
    if !aya::sys::is_program_supported(aya::programs::ProgramType::SchedClassifier)
        .context("ask the kernel for BPF support")?
    {
        bail!(
            "this kernel does not offer BPF classifiers: it needs CONFIG_BPF_SYSCALL, \
             CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"
        );
    }
    Ok(())
}

/// Whether the running kernel is Linux `major.minor` or newer.
pub fn is_at_least(major: u8, minor: u8) -> Result<bool> {
    let running = KernelVersion::current().context("read the kernel's version")?;
    Ok(running >= KernelVersion::new(major, minor, 0))
}

/// Checks that this process may load programs and attach them.
pub fn check_privileges() -> Result<()> {
    let status = Process::myself()
        .and_then(|process| process.status())
        .context("read this process's capabilities")?;
    let has = |capability| status.capeff & capability != 0;
    // The programs compare packet pointers, which without CAP_PERFMON the verifier forbids.
    let may_load = has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON);
    if !has(CAP_NET_ADMIN) || !may_load {
        bail!(
            "loading and attaching kernel programs needs the capabilities CAP_BPF, CAP_NET_ADMIN \
             and CAP_PERFMON: run as root (sudo memlb …), or grant them to the service"
        );
    }
    Ok(())
}
