//! Kernel, privileges and clock: what memlb needs of any machine.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use super::Finding;
use crate::datapath::kernel::{self, KernelSupport};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A clock that says less was never set: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// How much the wall clock may be slewed, or reading both clocks may take.
const MOST_APART: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct Facts {
    pub release: String,
    /// What it lacks; nothing if this user may not ask it.
    pub shortcoming: Option<Option<String>>,
    pub has_btf: bool,
    pub has_tcx: bool,
    /// Effective capabilities, one bit each.
    pub privileges: u64,
}

/// Both clocks at one instant.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub steady: Instant,
    pub wall: SystemTime,
}

impl Clocks {
    pub fn now() -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now(),
        }
    }
}

pub fn gather() -> anyhow::Result<Facts> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(Facts {
        release: release.trim().to_owned(),
        shortcoming: KernelSupport::of_this_kernel()
            .ok()
            .map(|offer| offer.shortcoming()),
        has_btf: Path::new(BTF).exists(),
        has_tcx: kernel::is_at_least(6, 6)?,
        privileges: kernel::privileges()?,
    })
}

pub fn findings(facts: &Facts) -> Vec<Finding> {
    vec![kernel(facts), btf(facts), capabilities(facts)]
}

fn kernel(facts: &Facts) -> Finding {
    let Facts {
        release, has_tcx, ..
    } = facts;
    let way = if *has_tcx { "tcx" } else { "clsact" };
    match &facts.shortcoming {
        Some(Some(lacks)) => Finding::problem(
            "kernel",
            lacks.clone(),
            "apt-get install linux-image-amd64, from backports if need be, and restart into it",
        ),
        Some(None) => Finding::ok(
            "kernel",
            format!("Linux {release} offers what memlb needs; TC programs attach by {way}"),
        ),
        None => Finding::warning(
            "kernel",
            format!("this user may not read which BPF features Linux {release} has"),
            "sudo memlb doctor",
        ),
    }
}

fn btf(facts: &Facts) -> Finding {
    match facts.has_btf {
        true => Finding::ok("btf", "the kernel describes its types"),
        false => Finding::problem(
            "btf",
            format!("the kernel has no type information ({BTF} does not exist)"),
            "start a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' own are",
        ),
    }
}

fn capabilities(facts: &Facts) -> Finding {
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

/// Judges the clocks, which only log lines and events are dated by.
pub fn clock(before: Clocks, after: Clocks) -> Finding {
    let set = "timedatectl set-ntp true";
    let since_1970 = after.wall.duration_since(SystemTime::UNIX_EPOCH);
    if since_1970.is_ok_and(|time| time < EARLIEST) {
        let wall = humantime::format_rfc3339_seconds(after.wall);
        let found = format!("it is set to {wall}: logs and events bear that date");
        return Finding::warning("clock", found, set);
    }
    let steady = after.steady.saturating_duration_since(before.steady);
    let passed = after.wall.duration_since(before.wall).unwrap_or_default();
    let apart = passed.abs_diff(steady);
    if apart > MOST_APART || after.wall < before.wall {
        return Finding::warning(
            "clock",
            format!(
                "it was set while memlb looked ({apart:.1?} apart from the steady clock): failover \
                 does not mind, log lines come out of order"
            ),
            "timedatectl timesync-status",
        );
    }
    Finding::ok(
        "clock",
        "runs steadily (heartbeats are timed by the kernel's steady clock, never by this one)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    fn good() -> Facts {
        Facts {
            release: "6.18.44".to_owned(),
            shortcoming: Some(None),
            has_btf: true,
            has_tcx: true,
            privileges: u64::MAX,
        }
    }

    fn worst(facts: &Facts) -> Finding {
        let findings = findings(facts);
        findings.into_iter().max_by_key(|it| it.severity).unwrap()
    }

    #[test]
    fn reports_what_kernel_and_user_lack() {
        assert_eq!(worst(&good()).severity, Severity::Ok);
        let old = Facts {
            release: "5.10.0-30".to_owned(),
            shortcoming: Some(Some("5.10.0-30 is too old".to_owned())),
            ..good()
        };
        assert!(worst(&old).found.contains("5.10.0-30 is too old"));
        let bare = Facts {
            has_btf: false,
            ..good()
        };
        assert!(worst(&bare).remedy.unwrap().contains("BTF"));
        // CAP_NET_ADMIN and CAP_BPF, as a unit may forget the third.
        let poor = Facts {
            privileges: 1 << 12 | 1 << 39,
            ..good()
        };
        let remedy = "AmbientCapabilities=CAP_PERFMON";
        worst(&poor).assert(Severity::Problem, "lacks CAP_PERFMON:", remedy);
    }

    #[test]
    fn warns_of_a_clock_that_jumps_or_was_never_set() {
        let before = Clocks {
            steady: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + EARLIEST + Duration::from_secs(100),
        };
        let after = |steady: u64, wall: u64| Clocks {
            steady: before.steady + Duration::from_millis(steady),
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
