//! The QEMU Machine Protocol: a command is a line of JSON, and so is its answer; events come between them.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memlb_tests::wait_for;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the QEMU at `socket`, which may still be starting.
    ///
    /// # Errors
    /// It does not listen within ten seconds.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = wait_for(PATIENCE, "QEMU's socket", || {
            UnixStream::connect(socket).ok()
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        qmp.read().context("read QEMU's greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command, and returns its result.
    ///
    /// # Errors
    /// QEMU refused the command, or has ended.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.answer(&line)
            .with_context(|| format!("QEMU's command {line}"))
    }

    fn answer(&mut self, line: &Value) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{line}")?;
        loop {
            let mut answer = self.read()?;
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            if answer.get("error").is_some() {
                bail!("{}", answer["error"]["desc"]);
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line)?;
        anyhow::ensure!(length > 0, "QEMU has ended");
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}
