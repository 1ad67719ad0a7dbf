//! Processor time of a balancer for each gigabyte: of its processes and of its BPF programs. Excludes the kernel's
//! network stack, for all contenders alike.

use std::{fmt::Display, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::command::output;
use serde::Serialize;
use serde_json::Value;

use super::{
    contender::Contender,
    laboratory::Laboratory,
    rounds::{self, Workload},
    statistics::Spread,
    table::Table,
    wrk::Wrk,
};
use xtask::{interrupt::Interrupt, workspace::print_message};

pub const COMPARED: [Contender; 6] = [
    Contender::MemlbTc,
    Contender::MemlbDsr,
    Contender::MemlbRouted,
    Contender::NginxKeepalive,
    Contender::Nginx2018,
    Contender::HaproxyTcp,
];

/// Highest accepted cost of mode dsr, relative to nginx.
const AT_MOST: f64 = 1.0 / 20.0;

/// The cost of a gigabyte, in bodies of 1 MiB.
#[derive(Debug, Serialize)]
pub struct ProcessorCost {
    pub contender: Contender,
    pub seconds_per_gigabyte: Spread,
}

/// Measures the present contenders once in each of the `rounds`.
///
/// # Errors
/// The kernel does not time its programs, or wrk failed.
pub fn measure(
    laboratories: &[Laboratory],
    rounds: usize,
    duration: Duration,
    wrk: &Wrk,
    interrupt: &Interrupt,
) -> Result<Vec<ProcessorCost>> {
    print_message("measuring the balancers' processor time for each gigabyte");
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
        Ok(ProcessorCost {
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
    let figures = rounds::measure(laboratory, Workload::Bulk, duration, wrk)?;
    let gigabytes = figures.bytes_per_second() * duration.as_secs_f64() / 1e9;
    Ok(used()?.saturating_sub(before).as_secs_f64() / gigabytes)
}

/// Returns the table for people.
pub fn text(costs: &[ProcessorCost]) -> String {
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

/// Lets the kernel measure the run time of every BPF program until it is dropped. This slows each run a little.
#[derive(Debug)]
pub struct Timing {
    before: String,
}

impl Timing {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub fn start() -> Result<Self> {
        let change = format!("switch the timing of programs on in {}", Self::SWITCH);
        let before = fs::read_to_string(Self::SWITCH).with_context(|| change.clone())?;
        fs::write(Self::SWITCH, "1").context(change)?;
        Ok(Self { before })
    }

    /// Returns the run time of all managers' programs on this machine since the timing was switched on.
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
            print_message(format!("{} stays on: {error}", Self::SWITCH));
        }
    }
}

/// Returns the processor time of a process and of its ended children.
pub fn of_process(pid: u32) -> Result<Duration> {
    ticks(&stat(pid)?[11..15])
}

/// Returns the processor time of the thread of `directory` below /proc.
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

/// Returns the processor time of all processes of a group.
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
        // A process that has ended is included in its parent's time.
        if stat(pid).is_ok_and(|fields| fields[2] == group.to_string()) {
            sum += of_process(pid).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Returns the resident memory of a process in bytes.
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
