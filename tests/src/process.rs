//! A running program whose output goes to a file, ended when dropped.

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

use crate::{command, notice::say, wait::wait_for};

/// A program that runs beside the test, together with all it starts.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the log this process begins; an earlier one may have used it.
    log_start: usize,
    kept: bool,
}

impl Process {
    /// Starts `command`; what it prints is appended to the file `log`.
    ///
    /// It gets a process group of its own: Ctrl-C on the terminal is for the
    /// one who started it, who then ends it in order.
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

    /// Sends `signal` to the program and to what it has started.
    ///
    /// # Errors
    /// When the program has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // A group whose leader is reaped may have its number used again.
        if !self.is_running() {
            bail!("{} has ended; {signal} comes too late", self.name);
        }
        killpg(self.group()?, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for the program to end by itself.
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

    /// Asks the program to end, as a service manager would, and waits for it.
    ///
    /// # Errors
    /// When it has ended already, or does not within `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Ends the program at once, giving it no chance to say goodbye.
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

    /// Lets the program run on after this handle is gone.
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
            say(format_args!("{error:#}"));
        }
    }
}
