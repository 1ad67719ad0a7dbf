//! memlb beside IPVS, which few kernels at hand have: in an emulated machine with one that has it. There, the
//! comparison itself runs, by this very program, so that its ratios are ones of instructions.

use std::{env, fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    contender::Contender,
    emulated::{self, REPORT},
    rounds::Row,
};
use xtask::kernels::Load;

const COMPARED: [Contender; 4] = [
    Contender::Direct,
    Contender::Router,
    Contender::MemlbTc,
    Contender::Ipvs,
];

/// What IPVS and the comparison take beside a laboratory.
const MODULES: &[&str] = &["ip_vs", "ip_vs_rr"];
const PROGRAMS: &[&str] = &["ipvsadm", "nstat", "sysctl", "wrk"];

/// What the comparison is called in there.
const TASK: &str = "compare";

/// By the emulated clock; a second of it takes a few of ours.
const SETTING_UP: Duration = Duration::from_secs(60);
const SLOWNESS: u32 = 15;

/// Boots the machine and compares there, by `seconds` of its own. Returns the table and the report.
pub fn compare(memlb: &Path, rounds: u16, seconds: u64) -> Result<(String, Value)> {
    let here = env::current_exe().context("find this program")?;
    let load = Load {
        memlb,
        modules: MODULES,
        programs: PROGRAMS,
        files: Vec::new(),
        tasks: vec![(TASK, &here)],
        script: script(rounds, seconds),
    };
    let each = u32::from(rounds) * (COMPARED.len() * Row::ALL.len()) as u32;
    let measuring = Duration::from_secs(seconds) * each;
    emulated::run("ipvs", &load, (measuring + SETTING_UP) * SLOWNESS)
}

/// The line by which the guest starts the comparison.
fn script(rounds: u16, seconds: u64) -> String {
    let mut with = String::new();
    for contender in COMPARED {
        let separator = if with.is_empty() { "" } else { "," };
        write!(with, "{separator}{}", contender.name()).expect("a string takes everything");
    }
    format!(
        "{TASK} bench --with {with} --only kept-alive,one-each,bulk --rounds {rounds} \
         --seconds {seconds} {REPORT}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::script;

    #[test]
    fn compares_both_with_a_plain_hop() {
        let script = script(5, 3);
        assert!(script.starts_with("compare bench --with direct,router,memlb-tc,ipvs "));
    }
}
