//! Builds and starts the benchmarks in `benches`: of single packets, of the manager, and of many connections.

use std::{path::Path, process::Command};

use anyhow::Result;
use memlb_tests::{cluster::BINARY, command::run};

use xtask::{
    build_ebpf,
    privilege::{as_root, replace_process},
    test_binaries::build_benchmark,
};

/// Measures packets in so many `rounds`.
pub fn of_packets(rounds: u16, json: Option<&Path>) -> Result<()> {
    build_ebpf::build_ebpf()?;
    let mut benchmark = as_root(build_benchmark("packet")?);
    benchmark.args(["--bench", "--rounds", &rounds.to_string()]);
    measure(benchmark, json)
}

/// Measures the manager in this binary.
pub fn of_the_manager(memlb: &Path, json: Option<&Path>) -> Result<()> {
    let mut benchmark = as_root("env");
    benchmark
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(build_benchmark("control")?)
        .arg("--bench");
    measure(benchmark, json)
}

/// Measures connections through this binary, with further `arguments`. Returns only on failure: the benchmark replaces
/// this process, because it removes its laboratories itself on an interrupt.
pub fn of_connections(memlb: &Path, arguments: &[String], json: Option<&Path>) -> Result<()> {
    let mut benchmark = as_root("env");
    benchmark
        .arg(format!("{BINARY}={}", memlb.display()))
        .arg(build_benchmark("load")?)
        .arg("--bench")
        .args(arguments);
    if let Some(file) = json {
        benchmark.arg("--json").arg(file);
    }
    Err(replace_process(benchmark))
}

fn measure(mut benchmark: Command, json: Option<&Path>) -> Result<()> {
    if let Some(file) = json {
        benchmark.arg("--json").arg(file);
    }
    run(&mut benchmark)
}
