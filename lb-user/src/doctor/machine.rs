//! Kernel, privileges and clock, which memlb needs on any machine.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use super::Finding;
use crate::datapath::kernel::{self, KernelSupport};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A clock with an earlier time was never set: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// The most that the clocks may differ, because of slewing or the time between reading them.
const MAX_DIFFERENCE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct MachineFacts {
    pub release: String,
    /// The missing feature, if any; the outer `None` if this user may not probe the kernel.
    pub shortcoming: Option<Option<String>>,
    pub has_btf: bool,
    pub has_tcx: bool,
    /// Effective capabilities, one bit each.
    pub privileges: u64,
}

/// The monotonic and the wall clock at one instant.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub monotonic: Instant,
    pub wall: SystemTime,
}

impl Clocks {
    pub fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

pub fn gather() -> anyhow::Result<MachineFacts> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(MachineFacts {
        release: release.trim().to_owned(),
        shortcoming: KernelSupport::of_this_kernel()
            .ok()
            .map(|offer| offer.shortcoming()),
        has_btf: Path::new(BTF).exists(),
        has_tcx: kernel::is_at_least(6, 6)?,
        privileges: kernel::privileges()?,
    })
}

pub fn findings(facts: &MachineFacts) -> Vec<Finding> {
    vec![kernel(facts), btf(facts), capabilities(facts)]
}

fn kernel(facts: &MachineFacts) -> Finding {
    let MachineFacts {
        release, has_tcx, ..
    } = facts;
    let attachment = if *has_tcx { "tcx" } else { "clsact" };
    match &facts.shortcoming {
        Some(Some(lacks)) => Finding::problem(
            "kernel",
            lacks.clone(),
            "apt-get install linux-image-amd64, from backports if need be, and restart into it",
        ),
        Some(None) => Finding::ok(
            "kernel",
            format!("Linux {release} offers what memlb needs; TC programs attach by {attachment}"),
        ),
        None => Finding::warning(
            "kernel",
            format!("this user may not read which BPF features Linux {release} has"),
            "sudo memlb doctor",
        ),
    }
}

fn btf(facts: &MachineFacts) -> Finding {
    match facts.has_btf {
        true => Finding::ok("btf", "the kernel describes its types"),
        false => Finding::problem(
            "btf",
            format!("the kernel has no type information ({BTF} does not exist)"),
            "start a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' own are",
        ),
    }
}

fn capabilities(facts: &MachineFacts) -> Finding {
    let missing = kernel::missing_privileges(facts.privileges);
    if missing.is_empty() {
        return Finding::ok(
            "capabilities",
            "programs may be loaded and attached by this user",
        );
    }
    let missing = missing.join(" ");
    Finding::problem(
        "capabilities",
        format!("this user lacks {missing}: a manager could not load or attach its programs"),
        format!("sudo memlb doctor; in a systemd unit: AmbientCapabilities={missing}"),
    )
}

/// Checks the wall clock, whose time log lines and events have.
pub fn clock(before: Clocks, after: Clocks) -> Finding {
    let set = "timedatectl set-ntp true";
    let since_1970 = after.wall.duration_since(SystemTime::UNIX_EPOCH);
    if since_1970.is_ok_and(|time| time < EARLIEST) {
        let wall = humantime::format_rfc3339_seconds(after.wall);
        let found = format!("it is set to {wall}: log lines and events have wrong times");
        return Finding::warning("clock", found, set);
    }
    let monotonic = after.monotonic.saturating_duration_since(before.monotonic);
    let passed = after.wall.duration_since(before.wall).unwrap_or_default();
    let apart = passed.abs_diff(monotonic);
    if apart > MAX_DIFFERENCE || after.wall < before.wall {
        return Finding::warning(
            "clock",
            format!(
                "it was set during this check (by {apart:.1?}): log lines may be out of order; failover is not \
                 affected"
            ),
            "timedatectl timesync-status",
        );
    }
    Finding::ok(
        "clock",
        "runs steadily (heartbeats are timed by CLOCK_MONOTONIC, not by this clock)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn good() -> MachineFacts {
        MachineFacts {
            release: "6.18.44".to_owned(),
            shortcoming: Some(None),
            has_btf: true,
            has_tcx: true,
            privileges: u64::MAX,
        }
    }

    fn worst(facts: &MachineFacts) -> Finding {
        let findings = findings(facts);
        findings.into_iter().max_by_key(|it| it.severity).unwrap()
    }

    #[test]
    fn reports_what_kernel_and_user_lack() {
        assert_eq!(worst(&good()).severity, Severity::Ok);
        let old = MachineFacts {
            release: "5.10.0-30".to_owned(),
            shortcoming: Some(Some("5.10.0-30 is too old".to_owned())),
            ..good()
        };
        assert!(worst(&old).found.contains("5.10.0-30 is too old"));
        let bare = MachineFacts {
            has_btf: false,
            ..good()
        };
        assert!(worst(&bare).remedy.unwrap().contains("BTF"));
        // CAP_NET_ADMIN and CAP_BPF, as a unit may forget the third.
        let poor = MachineFacts {
            privileges: 1 << 12 | 1 << 39,
            ..good()
        };
        let remedy = "AmbientCapabilities=CAP_PERFMON";
        worst(&poor).assert(Severity::Problem, "lacks CAP_PERFMON:", remedy);
    }

    #[test]
    fn warns_of_a_clock_that_jumps_or_was_never_set() {
        let before = Clocks {
            monotonic: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + EARLIEST + Duration::from_secs(100),
        };
        let after = |monotonic: u64, wall: u64| Clocks {
            monotonic: before.monotonic + Duration::from_millis(monotonic),
            wall: before.wall + Duration::from_millis(wall),
        };
        assert_eq!(clock(before, after(500, 510)).severity, Severity::Ok);
        let jumped = clock(before, after(500, 3_600_000));
        assert_eq!(jumped.severity, Severity::Warning);
        let back = Clocks {
            wall: before.wall - Duration::from_secs(1),
            ..after(500, 0)
        };
        assert_eq!(clock(before, back).severity, Severity::Warning);
        let unset = Clocks {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(9),
            ..before
        };
        assert!(clock(unset, unset).found.contains("1970"));
    }
}
