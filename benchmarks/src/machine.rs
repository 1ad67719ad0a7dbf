//! Description of the machine of a measurement.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub memory_mib: u64,
    /// Load of all processors in the second before the measurement.
    pub busy_before_percent: f64,
    pub versions: Vec<(&'static str, String)>,
}

impl Machine {
    pub fn describe(memlb: &Path) -> Self {
        Self {
            kernel: file("/proc/sys/kernel/osrelease").trim().into(),
            processor: value(&file("/proc/cpuinfo"), "model name"),
            processors: thread::available_parallelism().map_or(0, usize::from),
            memory_mib: value(&file("/proc/meminfo"), "MemTotal")
                .split(' ')
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or_default()
                / 1024,
            busy_before_percent: busy_percent(),
            versions: vec![
                ("memlb", version(memlb, "--version")),
                ("wrk", version("wrk", "-v")),
                ("nginx", version("nginx", "-v")),
                ("haproxy", version("haproxy", "-v")),
                ("nft", version("nft", "--version")),
            ],
        }
    }
}

/// Processor time since the boot.
#[derive(Debug, Clone, Copy)]
pub struct ProcessorTime {
    total: u64,
    idle: u64,
    stolen: u64,
}

impl ProcessorTime {
    /// Returns zeros where /proc/stat cannot be read.
    pub fn now() -> Self {
        let stat = file("/proc/stat");
        let line = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let at = |index: usize| fields.get(index).copied().unwrap_or_default();
        Self {
            total: fields.iter().sum(),
            idle: at(3) + at(4),
            stolen: at(7),
        }
    }

    /// Returns the share of the time since then that the hypervisor stole.
    pub fn stolen_percent_since(self) -> f64 {
        let now = Self::now();
        percent(now.stolen - self.stolen, now.total - self.total)
    }

    fn busy_percent_since(self) -> f64 {
        let now = Self::now();
        100.0 - percent(now.idle - self.idle, now.total - self.total)
    }
}

fn busy_percent() -> f64 {
    let before = ProcessorTime::now();
    thread::sleep(Duration::from_secs(1));
    before.busy_percent_since()
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn value(text: &str, key: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_else(|| "unknown".into())
}

/// Some programs print it to stderr, and some exit with a failure.
fn version(program: impl AsRef<Path>, flag: &str) -> String {
    let output = Command::new(program.as_ref())
        .arg(flag)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return "missing".into();
    };
    let printed = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&printed);
    line.lines().next().unwrap_or_default().trim().into()
}
