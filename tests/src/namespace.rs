//! A network namespace that is removed with its processes when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command::output, notice::print_message, wait::wait_for};

const DIRECTORY: &str = "/run/netns";

/// A network namespace under a name that `ip netns` knows.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    kept: bool,
}

impl Namespace {
    /// Makes the namespace `name` and switches its loopback interface on.
    ///
    /// # Errors
    /// When the name is in use, or without root.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name, kept: false };
        output(namespace.ip().args(["link", "set", "lo", "up"]))?;
        // A link-local address that is still checked for duplicates (RFC 4862) delays the first connection by a second.
        let off = || fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
        namespace.enter(off)??;
        Ok(namespace)
    }

    /// Returns an existing namespace, which was kept or left by a crash; it is deleted when dropped. `None` when there
    /// is none.
    pub fn adopt(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        Self::exists(&name).then(|| Self { name, kept: false })
    }

    /// Returns whether there is a namespace `name`.
    pub fn exists(name: &str) -> bool {
        Path::new(DIRECTORY).join(name).exists()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a command that runs `program` in here.
    ///
    /// Unlike `ip netns exec`, it does not mount another /sys, which has the pinned maps.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Runs a command line in here.
    ///
    /// # Errors
    /// When it fails; the error has what it printed on stderr.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.command(program).args(arguments))
            .with_context(|| format!("in the namespace {}", self.name))
    }

    /// Returns an `ip` that works on this namespace's links and addresses.
    pub fn ip(&self) -> Command {
        let mut ip = Command::new("ip");
        ip.args(["-netns", &self.name]);
        ip
    }

    /// Runs `work` on a thread of its own in here. Its sockets and threads remain in here.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entrance = File::open(self.path()).with_context(|| format!("open {}", self.name))?;
        thread::scope(|scope| {
            let worker =
                scope.spawn(move || setns(entrance, CloneFlags::CLONE_NEWNET).map(|()| work()));
            match worker.join() {
                Ok(result) => result.with_context(|| format!("enter {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts `work` on a thread of its own in here, with its own table of open files: it may open as many as a
    /// process, and all are closed when it ends. Returns when the thread has closed its copies of the open files, which
    /// would keep the pipes of a command started at the same time.
    ///
    /// # Errors
    /// When there is no such namespace. The thread fails when it cannot enter it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let entrance = File::open(self.path()).with_context(|| format!("open {}", self.name))?;
        let name = self.name.clone();
        let (ready, is_ready) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let entered = setns(entrance, CloneFlags::CLONE_NEWNET)
                .and_then(|()| unshare(CloneFlags::CLONE_FILES));
            drop(ready);
            entered.with_context(|| format!("enter {name}"))?;
            work()
        });
        // An error: the sender is gone.
        _ = is_ready.recv();
        Ok(thread)
    }

    /// Leaves the namespace in place for others; [`Namespace::adopt`] takes it back.
    pub fn keep(mut self) {
        self.kept = true;
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    fn processes(&self) -> Vec<Pid> {
        output(Command::new("ip").args(["netns", "pids", &self.name]))
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
            .filter(|pid| *pid != Pid::this())
            .collect()
    }

    /// Kills the processes in here, which a crash has left or somebody has started by hand. A namespace exists until
    /// its last process ends.
    fn end_processes(&self) -> Result<()> {
        let what = format!("the processes in {} to end", self.name);
        // Repeatedly, because a process may be entering.
        wait_for(Duration::from_secs(5), &what, || {
            let processes = self.processes();
            match processes.iter().try_for_each(|pid| end(*pid)) {
                Ok(()) => processes.is_empty().then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        })?
    }
}

fn end(pid: Pid) -> Result<()> {
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill process {pid}")),
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let deleted = self
            .end_processes()
            .and_then(|()| output(Command::new("ip").args(["netns", "delete", &self.name])));
        if let Err(error) = deleted {
            print_message(format_args!("namespace {}: {error:#}", self.name));
        }
    }
}

/// Returns a unique prefix for names.
pub fn unique_prefix() -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("memlb-{}-{call}-", process::id())
}

/// Deletes the namespaces under a [`unique_prefix`] whose process has died
/// without dropping them.
pub fn delete_abandoned() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_abandoned(&name) {
            drop(Namespace::adopt(name));
        }
    }
}

/// Returns whether `name` begins with a [`unique_prefix`] whose process has died.
pub(crate) fn is_abandoned(name: &str) -> bool {
    owner_of(name).is_some_and(|owner| kill(Pid::from_raw(owner), None) == Err(Errno::ESRCH))
}

fn owner_of(name: &str) -> Option<i32> {
    let (owner, rest) = name.strip_prefix("memlb-")?.split_once('-')?;
    let (call, _) = rest.split_once('-')?;
    call.parse::<u32>().ok()?;
    owner.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{owner_of, unique_prefix};

    #[test]
    fn finds_the_owner_of_a_unique_name() {
        let name = unique_prefix() + "worker1";
        assert_eq!(owner_of(&name), i32::try_from(std::process::id()).ok());
    }

    #[test]
    fn finds_no_owner_of_the_labs_namespaces() {
        assert_eq!(owner_of("memlb-worker1"), None);
        assert_eq!(owner_of("other-12-3-worker1"), None);
    }
}
