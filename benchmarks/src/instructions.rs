//! The cost of a packet in instructions: the packet benchmark in an emulated machine, where a nanosecond is an
//! instruction.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::emulated::{self, REPORT};
use xtask::{build_ebpf, kernels::Load, test_binaries::build_benchmark};

const TASK: &str = "packet";

/// Path of the baselines in the guest.
const BASELINE: &str = "/tasks/baseline";

/// Far more than it takes.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Boots the machine and measures there, in so many `rounds`. Returns the table and the report.
pub fn of_packets(memlb: &Path, rounds: u16) -> Result<(String, Value)> {
    let (benchmark, baseline) = (build_benchmark(TASK)?, build_ebpf::baseline());
    let arguments =
        format!("--bench --instructions --baseline {BASELINE} --rounds {rounds} {REPORT}");
    let load = Load {
        files: vec![(BASELINE, &baseline)],
        ..Load::of_task(memlb, TASK, &benchmark, &arguments)
    };
    emulated::run("instructions", &load, DEADLINE)
}
