//! What serving a gigabyte costs the balancer's machine: the time of its processes, and of the programs that
//! the kernel runs for it. What the network itself costs there is left out, for all alike.

use std::{fmt::Display, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::command::output;
use serde::Serialize;
use serde_json::Value;

use super::{
    contender::Contender,
    laboratory::Laboratory,
    rounds::{self, Row},
    statistics::Spread,
    table::Table,
    wrk::Wrk,
};
use xtask::{interrupt::Interrupt, workspace::say};

pub const COMPARED: [Contender; 6] = [
    Contender::MemlbTc,
    Contender::MemlbDsr,
    Contender::MemlbRouted,
    Contender::NginxKeepalive,
    Contender::Nginx2018,
    Contender::HaproxyTcp,
];

/// What mode dsr may cost of what nginx does, at the most.
const AT_MOST: f64 = 1.0 / 20.0;

/// What a gigabyte of bodies of 1 MiB costs.
#[derive(Debug, Serialize)]
pub struct Cost {
    pub contender: Contender,
    pub seconds_per_gigabyte: Spread,
}

/// Measures everyone there is in each of so many `rounds`.
///
/// # Errors
/// When the kernel does not time its programs, or wrk fails.
pub fn measure(
    laboratories: &[Laboratory],
    rounds: usize,
    duration: Duration,
    wrk: &Wrk,
    interrupt: &Interrupt,
) -> Result<Vec<Cost>> {
    say("measuring what a gigabyte costs the balancer's processors");
    let timing = Timing::start()?;
    let compared: Vec<_> = laboratories
        .iter()
        .filter(|it| COMPARED.contains(&it.contender))
        .collect();
    let mut costs = vec![Vec::new(); compared.len()];
    for _ in 0..rounds {
        for (laboratory, costs) in compared.iter().zip(&mut costs) {
            interrupt.check()?;
            costs.push(measure_once(laboratory, duration, wrk, &timing)?);
        }
    }
    let costs = compared.iter().zip(costs).map(|(laboratory, costs)| {
        Ok(Cost {
            contender: laboratory.contender,
            seconds_per_gigabyte: Spread::of(costs).context("at least one round")?,
        })
    });
    costs.collect()
}

fn measure_once(
    laboratory: &Laboratory,
    duration: Duration,
    wrk: &Wrk,
    timing: &Timing,
) -> Result<f64> {
    let used = || -> Result<Duration> {
        let balancer = laboratory.balancer().context("there is a balancer")?;
        let programs = if laboratory.contender.is_memlb() {
            timing.of_managers()?
        } else {
            Duration::ZERO
        };
        Ok(of_group(balancer.pid())? + programs)
    };
    let before = used()?;
    let figures = rounds::measure(laboratory, Row::Bulk, duration, wrk)?;
    let gigabytes = figures.bytes_per_second() * duration.as_secs_f64() / 1e9;
    Ok(used()?.saturating_sub(before).as_secs_f64() / gigabytes)
}

/// Returns the table for people.
pub fn text(costs: &[Cost]) -> String {
    let nginx = costs
        .iter()
        .filter(|it| {
            matches!(
                it.contender,
                Contender::NginxKeepalive | Contender::Nginx2018
            )
        })
        .map(|it| it.seconds_per_gigabyte.median)
        .min_by(f64::total_cmp);
    let mut table = Table::new(&[
        "processor time of the balancer",
        "ms per GB",
        "of nginx",
        "",
    ]);
    for cost in costs {
        let seconds = cost.seconds_per_gigabyte.median;
        let ratio = nginx.map(|nginx| seconds / nginx);
        let verdict = match ratio {
            Some(ratio) if cost.contender == Contender::MemlbDsr => {
                format!(
                    "expected at most {AT_MOST}: {}",
                    if ratio <= AT_MOST {
                        "reached"
                    } else {
                        "MISSED"
                    }
                )
            }
            _ => String::new(),
        };
        table.row([
            cost.contender.label().into(),
            format!("{:.1}", seconds * 1e3),
            ratio.map_or("–".into(), |ratio| format!("{ratio:.3}")),
            verdict,
        ]);
    }
    format!("\n{table}")
}

/// While it lives, the kernel takes the time of every program, which costs each run some time more.
#[derive(Debug)]
pub struct Timing {
    before: String,
}

impl Timing {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub fn start() -> Result<Self> {
        let change = format!("have the kernel time programs: {}", Self::SWITCH);
        let before = fs::read_to_string(Self::SWITCH).with_context(|| change.clone())?;
        fs::write(Self::SWITCH, "1").context(change)?;
        Ok(Self { before })
    }

    /// Returns how long all managers' programs on this machine have run while they were timed.
    pub fn of_managers(&self) -> Result<Duration> {
        let programs = output(Command::new("bpftool").args(["--json", "prog", "show"]))?;
        let programs: Vec<Value> =
            serde_json::from_str(&programs).context("bpftool prints JSON")?;
        let names = |program: &Value, prefix| {
            let name = program["name"].as_str();
            name.is_some_and(|name| name.starts_with(prefix))
        };
        let of_managers = programs
            .iter()
            .filter(|it| names(it, "memlb_") && !names(it, "memlb_dsr_"));
        let nanoseconds = of_managers
            .filter_map(|it| it["run_time_ns"].as_u64())
            .sum();
        Ok(Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::SWITCH, &self.before) {
            say(format!("{} stays on: {error}", Self::SWITCH));
        }
    }
}

/// Returns how long a process has run on a processor, and its children that have ended.
pub fn of_process(pid: u32) -> Result<Duration> {
    ticks(&stat(pid)?[11..15])
}

/// Returns how long the thread of that directory below /proc has run on a processor.
pub fn of_thread(directory: &Path) -> Result<Duration> {
    ticks(&stat(directory.display())?[11..13])
}

fn ticks(fields: &[String]) -> Result<Duration> {
    // USER_HZ, which Linux has fixed at 100 wherever memlb runs.
    const TICK: Duration = Duration::from_millis(10);
    let mut sum = 0;
    for field in fields {
        sum += field.parse::<u32>().context("a number of ticks")?;
    }
    Ok(TICK * sum)
}

/// The same of all processes of a group.
pub fn of_group(group: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|it| it.parse::<u32>().ok())
        else {
            continue;
        };
        // It may have ended meanwhile: its parent has the time then.
        if stat(pid).is_ok_and(|fields| fields[2] == group.to_string()) {
            sum += of_process(pid).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Returns how many bytes of a process are in memory.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let size = lines.find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    let size = size.context("a process has a size")?;
    Ok(size.trim().parse::<u64>().context("a size in KiB")? * 1024)
}

/// The fields of proc_pid_stat(5) after the name in parentheses, which may hold anything.
fn stat(directory: impl Display) -> Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{directory}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let fields: Vec<_> = fields.split_whitespace().map(str::to_owned).collect();
    anyhow::ensure!(fields.len() > 15, "a stat of /proc is cut short");
    Ok(fields)
}
