//! memlb beside IPVS, which few kernels at hand have: in an emulated machine with one of Debian's.
//!
//! There, the comparison itself runs, by this very program. The machine's clock goes by its
//! instructions, so that the ratios are ones of instructions, whatever this machine does meanwhile.

use std::{env, fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::kernel::Series;
use serde_json::Value;

use super::{contender::Contender, rounds::Row};
use crate::{
    interrupt::Interrupt,
    kernels::{Guest, Kernel, Load, cache},
    workspace::say,
};

const SERIES: Series = Series {
    major: 6,
    minor: 12,
};

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
    let interrupt = Interrupt::catch()?;
    let cache = cache();
    let kernel = Kernel::provide(SERIES, &cache)?;
    let release = kernel.release.clone();
    let here = env::current_exe().context("find this program")?;
    let load = Load {
        memlb,
        modules: MODULES,
        programs: PROGRAMS,
        tasks: vec![(TASK, &here)],
        script: script(rounds, seconds),
    };
    let guest = Guest::prepare(kernel, cache.join("ipvs"), &load)?;
    let each = u32::from(rounds) * (COMPARED.len() * Row::ALL.len()) as u32;
    let measuring = Duration::from_secs(seconds) * each;
    let (report, took) = guest.run((measuring + SETTING_UP) * SLOWNESS, &interrupt)?;
    let found = results(&report).with_context(|| {
        guest.show_logs();
        format!("the comparison on Linux {release} failed")
    })?;
    say(format!("that took {} s", took.as_secs()));
    Ok(found)
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
         --seconds {seconds} --json /proc/self/fd/1\n"
    )
}

/// Finds the table, and the report behind it, in what the guest has said.
fn results(said: &str) -> Result<(String, Value)> {
    let end = said
        .find(&format!("memlb: {TASK} ended with 0"))
        .context("it did not come to its end")?;
    let said = &said[..end];
    let json = said.find("\n{").context("it has no report")?;
    let report = serde_json::from_str(&said[json..]).context("read its report")?;
    // What it says while it measures comes before.
    let table = said[..json].rfind("xtask: ").map_or(0, |last| {
        said[last..].find('\n').map_or(json, |line| last + line)
    });
    Ok((said[table..json].trim().to_owned(), report))
}

#[cfg(test)]
mod tests {
    use super::{results, script};

    #[test]
    fn finds_the_table_and_the_report() {
        let said = "memlb: running compare\nxtask: round 1 of 1\n\nLinux 6.12\n  a  1\n\
                    \n{\n  \"rounds\": 1\n}\nmemlb: compare ended with 0\nmemlb: the end\n";
        let (table, report) = results(said).expect("results");
        assert_eq!(table, "Linux 6.12\n  a  1");
        assert_eq!(report["rounds"], 1);
    }

    #[test]
    fn believes_no_comparison_that_failed() {
        for said in [
            "",
            "{}\nmemlb: compare ended with 1\n",
            "xtask: no\nmemlb: compare ended with 0\n",
            "\n{ half\nmemlb: compare ended with 0\n",
        ] {
            assert!(results(said).is_err(), "{said}");
        }
    }

    #[test]
    fn compares_both_with_a_plain_hop() {
        let script = script(5, 3);
        assert!(script.starts_with("compare bench --with direct,router,memlb-tc,ipvs "));
    }
}
