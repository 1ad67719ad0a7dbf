//! The experiment on the machines of `cargo xtask machines`, which are the whole virtual machines that its published
//! figures are of.

use std::{
    io::{BufRead, BufReader, Lines},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{Probe, cluster_options::SERVICE_PORT, command::output};
use serde_json::Value;
use xtask::{
    interrupt::Interrupt,
    machines::{self, Lab},
    workspace::print_message,
};

use super::{ASK_INTERVAL, Measured, PATIENCE, PUBLISHED, runs};
use crate::{
    contender::Contender,
    wrk::{Load, Wrk},
};

const WORKERS: [&str; 2] = ["worker1", "worker2"];

/// Repeats it with memlb on the machines that are up.
pub fn measure(
    directory: &Path,
    duration: Duration,
    interrupt: &Interrupt,
) -> Result<Vec<Measured>> {
    let wrk = Wrk::prepare(directory)?;
    machines::with_lab(|lab| {
        ensure!(
            !lab.has_pair(),
            "the machines have a pair of managers, and the experiment has one: `cargo xtask machines down`, then `up` \
             without --pair"
        );
        let contender = attached(lab)?;
        let mut measured = Vec::new();
        for published in PUBLISHED {
            interrupt.check()?;
            print_message(format!(
                "{} clients without pause, on the machines",
                published.clients
            ));
            let load = Load {
                connections: published.clients,
                duration,
                one_each: false,
                path: "/",
            };
            measured.push(measure_one(lab, &wrk, load, contender)?);
        }
        interrupt.check()?;
        Ok(measured)
    })
}

/// Returns how the manager is attached.
fn attached(lab: &Lab) -> Result<Contender> {
    let status = output(&mut lab.command("manager", "sudo memlb status --json")?)?;
    let status: Value = serde_json::from_str(&status).context("read the manager's status")?;
    Ok(match status["interfaces"][0]["attachment"].as_str() {
        Some("xdp") => Contender::MemlbXdp,
        _ => Contender::MemlbTc,
    })
}

fn measure_one(lab: &Lab, wrk: &Wrk, load: Load, contender: Contender) -> Result<Measured> {
    let target = SocketAddr::new(lab.manager().parse()?, SERVICE_PORT);
    let mut watched = WORKERS
        .iter()
        .map(|worker| Watch::start(lab, worker, load.duration))
        .collect::<Result<Vec<_>>>()?;
    let probe = Probe::start(&lab.client, target, ASK_INTERVAL, PATIENCE)?;
    let figures = wrk.measure(&lab.client, target, load)?;
    let report = probe.stop()?;
    let mut used = watched.iter_mut().map(Watch::finish);
    let mut next = || used.next().context("there are two workers")?;
    let (first, second): (Used, Used) = (next()?, next()?);
    Ok(Measured {
        contender,
        clients: load.connections,
        cpu_percent: [first.cpu_percent, second.cpu_percent],
        memory_mb: [first.memory_mb, second.memory_mb],
        megabits_per_second: figures.bytes_per_second() * 8.0 / 1e6,
        requests_per_second: figures.requests_per_second(),
        failed_requests: figures.errors.total(),
        pages: runs(&report),
    })
}

/// What a whole machine used.
#[derive(Debug, PartialEq)]
struct Used {
    cpu_percent: f64,
    memory_mb: f64,
}

/// Reads a machine's counters before, during and after a measurement, by one connection: each costs an emulated machine
/// a second of its processor.
struct Watch {
    ssh: Child,
    lines: Lines<BufReader<ChildStdout>>,
    before: Ticks,
}

impl Watch {
    /// Returns when the measurement has begun.
    fn start(lab: &Lab, machine: &str, duration: Duration) -> Result<Self> {
        let half = duration.as_secs_f64() / 2.0;
        let script = format!(
            "head -n 1 /proc/stat; sleep {half}; head -n 3 /proc/meminfo; sleep {half}; head -n 1 /proc/stat"
        );
        let mut ssh = lab.command(machine, &script)?;
        let mut ssh = ssh
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run ssh to {machine}"))?;
        let lines = ssh.stdout.take().context("ssh's output is piped")?;
        let mut lines = BufReader::new(lines).lines();
        let before = Ticks::parse(&next_line(&mut lines)?)?;
        Ok(Self { ssh, lines, before })
    }

    fn finish(&mut self) -> Result<Used> {
        let memory = (0..3).map(|_| next_line(&mut self.lines));
        let memory = memory.collect::<Result<Vec<_>>>()?;
        let after = Ticks::parse(&next_line(&mut self.lines)?)?;
        self.ssh.wait().context("wait for ssh")?;
        Ok(Used {
            cpu_percent: after.percent_since(self.before),
            memory_mb: used_mb(&memory)?,
        })
    }
}

fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    let line = lines.next().context("the machine printed no more lines")?;
    line.context("read what the machine printed")
}

/// A processor's time since the machine's start.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// Reads the first line of /proc/stat.
    fn parse(line: &str) -> Result<Self> {
        let counters = line.split_whitespace().skip(1).map(str::parse);
        let counters: Vec<u64> = counters
            .collect::<Result<_, _>>()
            .with_context(|| format!("read the processor's time from {line:?}"))?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of the first two.
        let (Some(eight), Some(idle)) = (counters.get(..8), counters.get(3..5)) else {
            anyhow::bail!("{line:?} has too few counters");
        };
        let all: u64 = eight.iter().sum();
        Ok(Self {
            busy: all - idle.iter().sum::<u64>(),
            all,
        })
    }

    fn percent_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.busy.saturating_sub(before.busy) as f64 / all as f64 * 100.0
    }
}

/// Returns the memory in use, from the first lines of /proc/meminfo.
fn used_mb(lines: &[String]) -> Result<f64> {
    let kib = |name: &str| -> Result<f64> {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        let figure = line.and_then(|rest| rest.split_whitespace().next());
        let figure = figure.with_context(|| format!("/proc/meminfo has no {name}"))?;
        figure.parse().with_context(|| format!("read {name}"))
    };
    Ok((kib("MemTotal:")? - kib("MemAvailable:")?) * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::{Ticks, used_mb};

    #[test]
    fn reads_the_load_of_a_whole_machine() {
        let before = Ticks::parse("cpu  10 0 10 70 10 0 0 0 5 0").expect("a line of /proc/stat");
        let after = Ticks::parse("cpu  20 0 20 140 20 0 0 0 9 0").expect("another");
        assert_eq!(before, Ticks { busy: 20, all: 100 });
        assert_eq!(after.percent_since(before), 20.0);
        assert!(Ticks::parse("cpu0 1 2").is_err());
        assert!(Ticks::parse("no counters").is_err());

        let lines = [
            "MemTotal:         683000 kB",
            "MemFree:          100000 kB",
            "MemAvailable:     483000 kB",
        ];
        let used = used_mb(&lines.map(str::to_owned)).expect("both figures");
        assert!((used - 204.8).abs() < 0.001, "{used}");
        assert!(used_mb(&[]).is_err());
    }
}
