//! Compares memlb with IPVS in an emulated machine, because few kernels have IPVS. This program runs the comparison
//! there, so that the ratios are ratios of instructions.

use std::{env, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    contender::Contender,
    emulated::{self, REPORT},
    rounds::Workload,
};
use xtask::kernels::Load;

const COMPARED: [Contender; 4] = [
    Contender::Direct,
    Contender::Router,
    Contender::MemlbTc,
    Contender::Ipvs,
];

/// Modules and programs of IPVS and of the comparison, besides those of a laboratory.
const MODULES: &[&str] = &["ip_vs", "ip_vs_rr"];
const PROGRAMS: &[&str] = &["ipvsadm", "nstat", "sysctl", "wrk"];

/// The name of the comparison in the machine.
const TASK: &str = "compare";

/// By the emulated clock, which is slower than the real one.
const SETTING_UP: Duration = Duration::from_secs(60);
const SLOWNESS: u32 = 15;

/// Boots the machine and compares there, by `seconds` of its own. Returns the table and the report.
pub fn compare(memlb: &Path, rounds: u16, seconds: u64) -> Result<(String, Value)> {
    let here = env::current_exe().context("find this program")?;
    let load = Load {
        modules: MODULES,
        programs: PROGRAMS,
        ..Load::of_task(memlb, TASK, &here, &arguments(rounds, seconds))
    };
    let each = u32::from(rounds) * (COMPARED.len() * Workload::ALL.len()) as u32;
    let measuring = Duration::from_secs(seconds) * each;
    emulated::run("ipvs", &load, (measuring + SETTING_UP) * SLOWNESS)
}

/// The arguments of the comparison.
fn arguments(rounds: u16, seconds: u64) -> String {
    let contenders = COMPARED.map(Contender::name).join(",");
    format!(
        "bench --with {contenders} --only kept-alive,one-each,bulk --rounds {rounds} --seconds {seconds} {REPORT}"
    )
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn compares_both_with_a_router() {
        let arguments = arguments(5, 3);
        assert!(arguments.starts_with("bench --with direct,router,memlb-tc,ipvs "));
    }
}
