//! Builds and starts the benchmarks in `benches`: of the programs themselves, packet by
//! packet, of the manager, and of many connections.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    cluster::BINARY,
    command::{line, run},
};
use serde_json::Value;

use xtask::{
    build_ebpf,
    privilege::{as_root, become_command},
    workspace,
};

/// Measures packets in so many `rounds`.
pub fn of_packets(rounds: u16, json: Option<&Path>) -> Result<()> {
    build_ebpf::build_ebpf()?;
    let mut benchmark = as_root(build("packet")?);
    benchmark.args(["--bench", "--rounds", &rounds.to_string()]);
    measure(benchmark, json)
}

/// Measures the manager in this binary.
pub fn of_the_manager(memlb: &Path, json: Option<&Path>) -> Result<()> {
    let mut benchmark = as_root("env");
    benchmark
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(build("control")?)
        .arg("--bench");
    measure(benchmark, json)
}

/// Measures connections through this binary, with further `arguments`. Returns only when that fails:
/// the benchmark takes its laboratories down itself when it is interrupted.
pub fn of_connections(memlb: &Path, arguments: &[String], json: Option<&Path>) -> Result<()> {
    let mut benchmark = as_root("env");
    benchmark
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(build("load")?)
        .arg("--bench")
        .args(arguments);
    if let Some(file) = json {
        benchmark.arg("--json").arg(file);
    }
    Err(become_command(benchmark))
}

fn measure(mut benchmark: Command, json: Option<&Path>) -> Result<()> {
    if let Some(file) = json {
        benchmark.arg("--json").arg(file);
    }
    run(&mut benchmark)
}

/// Builds as the user what root then runs.
pub fn build(name: &str) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["bench", "--package=memlb-benchmarks", "--bench", name])
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("start `{}`", line(&cargo)))?;
    ensure!(
        output.status.success(),
        "`{}` ended with {}",
        line(&cargo),
        output.status
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|message| serde_json::from_str::<Value>(message).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(message["executable"].as_str()?.into()))
        .with_context(|| format!("`{}` built no benchmark", line(&cargo)))
}
