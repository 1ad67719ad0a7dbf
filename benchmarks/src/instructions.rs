//! What a packet costs in the programs in instructions, by the same benchmark that times them: in an emulated
//! machine, where a nanosecond is an instruction.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::{
    emulated::{self, REPORT},
    started,
};
use xtask::{build_ebpf, kernels::Load};

const TASK: &str = "packet";

/// Where the guest finds the baselines.
const BASELINE: &str = "/tasks/baseline";

/// Far more than it takes.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Boots the machine and measures there, in so many `rounds`. Returns the table and the report.
pub fn of_packets(memlb: &Path, rounds: u16) -> Result<(String, Value)> {
    let (benchmark, baseline) = (started::build(TASK)?, build_ebpf::baseline());
    let load = Load {
        memlb,
        modules: &[],
        programs: &[],
        files: vec![(BASELINE, &baseline)],
        tasks: vec![(TASK, &benchmark)],
        script: format!(
            "{TASK} --bench --instructions --baseline {BASELINE} --rounds {rounds} {REPORT}\n"
        ),
    };
    emulated::run("instructions", &load, DEADLINE)
}
