//! Requirements on kernel and process, checked before any change.

use std::fs;

use anyhow::{Context, Result, bail};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_program_supported},
    util::KernelVersion,
};
use procfs::process::Process;

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Checks privileges and kernel.
pub fn check() -> Result<()> {
    check_privileges()?;
    match KernelSupport::of_this_kernel()?.shortcoming() {
        None => Ok(()),
        Some(shortcoming) => bail!(shortcoming),
    }
}

/// Required features of the kernel. Probed, because distributions backport features.
pub struct KernelSupport {
    pub release: String,
    classifiers: bool,
    /// `bpf_loop`, the newest required feature (e6f2dd0f8067).
    loops: bool,
}

impl KernelSupport {
    pub fn of_this_kernel() -> Result<Self> {
        let context = "probe the kernel's BPF support";
        let classifier = ProgramType::SchedClassifier;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("read the kernel's release")?;
        Ok(Self {
            release: release.trim().to_owned(),
            classifiers: is_program_supported(classifier).context(context)?,
            loops: is_helper_supported(classifier, BpfHelper::BPF_FUNC_loop).context(context)?,
        })
    }

    /// Describes the missing feature, if any.
    pub fn shortcoming(&self) -> Option<String> {
        let Self { release, .. } = self;
        if !self.classifiers {
            return Some(format!(
                "this kernel, Linux {release}, does not offer BPF classifiers: memlb needs one with \
                 CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"
            ));
        }
        if !self.loops {
            return Some(format!(
                "this kernel, Linux {release}, is too old: memlb needs Linux 5.17 or newer, or one to \
                 which bpf_loop was added"
            ));
        }
        None
    }
}

/// Whether the running kernel is Linux `major.minor` or newer.
pub fn is_at_least(major: u8, minor: u8) -> Result<bool> {
    let running = KernelVersion::current().context("read the kernel's version")?;
    Ok(running >= KernelVersion::new(major, minor, 0))
}

/// Checks that this process may load programs and attach them.
pub fn check_privileges() -> Result<()> {
    if !missing_privileges(privileges()?).is_empty() {
        bail!(
            "loading and attaching kernel programs needs the capabilities CAP_BPF, CAP_NET_ADMIN \
             and CAP_PERFMON: run as root (sudo memlb …), or grant them to the service"
        );
    }
    Ok(())
}

/// Returns this process's effective capabilities, one bit each.
pub fn privileges() -> Result<u64> {
    let status = Process::myself()
        .and_then(|process| process.status())
        .context("read this process's capabilities")?;
    Ok(status.capeff)
}

/// Returns the names of missing capabilities.
pub fn missing_privileges(effective: u64) -> Vec<&'static str> {
    let has = |capability| effective & capability != 0;
    let needed = [
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        // Without it, the verifier rejects comparisons of packet pointers.
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
    ];
    let missing = needed.into_iter().filter(|(_, has)| !has);
    missing.map(|(name, _)| name).collect()
}

/// Whether a process with these capabilities may mount a file system.
pub fn may_mount(effective: u64) -> bool {
    effective & CAP_SYS_ADMIN != 0
}

#[cfg(test)]
mod tests {
    use super::KernelSupport;

    #[test]
    fn reports_what_a_kernel_lacks() {
        let offer = |classifiers, loops| KernelSupport {
            release: "5.10.0-30-amd64".into(),
            classifiers,
            loops,
        };
        assert_eq!(offer(true, true).shortcoming(), None);
        for (offer, expected) in [
            (
                offer(true, false),
                "Linux 5.10.0-30-amd64, is too old: memlb needs Linux 5.17",
            ),
            (offer(false, false), "CONFIG_NET_CLS_BPF"),
        ] {
            let said = offer.shortcoming().unwrap_or_default();
            assert!(said.contains(expected), "{said}");
        }
    }
}
