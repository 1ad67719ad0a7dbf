//! Load by wrk, and its results.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use memlb_tests::{Namespace, command::output};
use serde::{Deserialize, Serialize};

/// The large body's name on every worker.
pub const BULK_PATH: &str = "/1MiB";

/// One for each processor; the servers and the packet path share them.
const THREADS: usize = 2;

/// The load of wrk.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub duration: Duration,
    /// One connection for each request, without keep-alive.
    pub one_each: bool,
    pub path: &'static str,
}

/// The results of wrk.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Figures {
    pub requests: u64,
    pub duration_us: u64,
    pub bytes: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    #[serde(flatten)]
    pub errors: Errors,
}

/// Requests without a good answer, by what went wrong.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Errors {
    pub connect: u64,
    pub read: u64,
    pub write: u64,
    pub timeout: u64,
    /// Answers that were neither 2xx nor 3xx.
    pub status: u64,
}

impl Figures {
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds()
    }

    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds()
    }

    pub fn seconds(&self) -> f64 {
        self.duration_us as f64 / 1e6
    }
}

impl Errors {
    pub fn total(&self) -> u64 {
        self.connect + self.read + self.write + self.timeout + self.status
    }
}

/// wrk with the script that prints its summary as JSON.
#[derive(Debug, Clone)]
pub struct Wrk {
    script: PathBuf,
}

impl Wrk {
    /// Writes the script to `directory`.
    ///
    /// # Errors
    /// The script cannot be written.
    pub fn prepare(directory: &Path) -> Result<Self> {
        let script = directory.join("wrk.lua");
        fs::write(&script, include_str!("wrk.lua"))
            .with_context(|| format!("write {}", script.display()))?;
        Ok(Self { script })
    }

    /// Runs `load` against `server` from inside `client`, and returns the results.
    ///
    /// # Errors
    /// wrk failed, for example because nothing listens.
    pub fn measure(&self, client: &Namespace, server: SocketAddr, load: Load) -> Result<Figures> {
        figures(&output(&mut self.command(client, server, load))?)
    }

    /// Returns the command of [`Self::measure`]. SIGINT ends wrk early, with its summary.
    pub fn command(&self, client: &Namespace, server: SocketAddr, load: Load) -> Command {
        let Load {
            connections,
            duration,
            one_each,
            path,
        } = load;
        let mut wrk = client.command("wrk");
        wrk.arg(format!("--threads={THREADS}"))
            .arg(format!("--connections={connections}"))
            .arg(format!("--duration={}s", duration.as_secs().max(1)))
            .arg("--script")
            .arg(&self.script);
        if one_each {
            wrk.args(["--header", "Connection: close"]);
        }
        wrk.arg(format!("http://{server}{path}"));
        wrk
    }
}

/// Finds the summary in the output of wrk.
///
/// # Errors
/// There is none.
pub fn figures(printed: &str) -> Result<Figures> {
    let line = printed.lines().find(|line| line.starts_with('{'));
    line.and_then(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("wrk printed no summary but:\n{printed}"))
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn reads_the_summary_among_wrks_own_lines() {
        let printed = "Running 1s test @ http://192.168.56.101:80/\n  2 threads and 64 connections\n\
            {\"requests\":300,\"duration_us\":1500000,\"bytes\":3000,\"p50_us\":9,\"p99_us\":20,\
            \"connect\":1,\"read\":2,\"write\":3,\"timeout\":4,\"status\":5}\n";
        let figures = figures(printed).expect("a summary");
        assert_eq!(figures.requests_per_second(), 200.0);
        assert_eq!(figures.bytes_per_second(), 2000.0);
        assert_eq!(figures.errors.total(), 15);
    }

    #[test]
    fn refuses_a_run_without_summary() {
        assert!(figures("unable to connect to 192.168.56.101:80").is_err());
    }
}
