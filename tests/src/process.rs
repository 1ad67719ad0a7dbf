//! A running program with its output in a file, ended when dropped.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{command, notice::print_message, wait::wait_for};

/// A running program and its children.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// The offset of this process's output in the log, which an earlier one may have used.
    log_start: usize,
    kept: bool,
}

impl Process {
    /// Starts `command`; what it prints is appended to the file `log`.
    ///
    /// It gets its own process group, so that Ctrl-C on the terminal reaches only the starter, which then ends it.
    ///
    /// # Errors
    /// When the program or the file cannot be opened.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let log_start = usize::try_from(output.metadata().context("look at the log file")?.len())?;
        let errors = output.try_clone().context("share the log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start `{}`", command::line(command)))?;
        Ok(Self {
            name: name.into(),
            child,
            log: log.into(),
            log_start,
            kept: false,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the program has printed so far.
    pub fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal` to the program and its children.
    ///
    /// # Errors
    /// When the program has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The number of a group may be reused after its leader is reaped.
        if !self.is_running() {
            bail!("{} has ended; {signal} comes too late", self.name);
        }
        killpg(self.group()?, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// When it has not within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let Self { child, name, .. } = self;
        wait_for(deadline, &format!("{name} to end"), || {
            child.try_wait().transpose()
        })?
        .with_context(|| format!("wait for {name}"))
    }

    /// Ends the program by SIGTERM, as a service manager does, and waits for it.
    ///
    /// # Errors
    /// When it has ended already, or does not within `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Kills the program by SIGKILL.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.wait(Duration::from_secs(5))?;
        match status.signal() {
            Some(_) => Ok(()),
            None => bail!("{} had ended by itself: {status}", self.name),
        }
    }

    /// Waits until the program has printed `text`.
    ///
    /// # Errors
    /// When it has not within `deadline`, or ends without; the error carries what it printed.
    pub fn wait_for_log(&mut self, deadline: Duration, text: &str) -> Result<()> {
        let what = format!("{} to print \"{text}\"", self.name);
        let printed = wait_for(deadline, &what, || {
            let ended = !self.is_running();
            let printed = self.log().contains(text);
            (ended || printed).then_some(printed)
        });
        match printed {
            Ok(true) => Ok(()),
            Ok(false) => Err(anyhow!("{} has ended", self.name)),
            Err(error) => Err(error),
        }
        .map_err(|error| anyhow!("{error}; it printed:\n{}", self.log().trim_end()))
    }

    /// Keeps the program running without this handle.
    pub fn keep(mut self) {
        self.kept = true;
    }

    fn group(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.pid())?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kept || !self.is_running() {
            return;
        }
        if let Err(error) = self.kill() {
            print_message(format_args!("{error:#}"));
        }
    }
}
