//! What a figure was measured on, without which it means nothing.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub memory_mib: u64,
    /// What was running already when the measurement began.
    pub load_average: String,
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
            load_average: load_average(),
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

/// Returns how many processes wanted to run lately, over 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = file("/proc/loadavg");
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
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

/// Some of them say it on stderr, and some call it a failure.
fn version(program: impl AsRef<Path>, flag: &str) -> String {
    let output = Command::new(program.as_ref())
        .arg(flag)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return "missing".into();
    };
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said);
    line.lines().next().unwrap_or_default().trim().into()
}
