//! Files with the state that a restarted manager needs: the operator's orders, members, denied clients.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{info, warn};

const VERSION: u32 = 1;

/// How long after a failed write the file is written again.
const RETRY: Duration = Duration::from_secs(5);

/// How long a disk may take to store a command.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Content<T> {
    #[serde(alias = "form")]
    version: u32,
    #[serde(alias = "kept", alias = "orders")]
    content: T,
}

/// A file that a task of its own writes: always the latest content, and always as a whole. The task ends when this is
/// dropped.
#[derive(Debug)]
pub struct StateFile<T> {
    latest: watch::Sender<(u64, T)>,
    progress: watch::Receiver<FlushProgress>,
    _writer: JoinSet<()>,
}

/// The progress of the task that writes.
#[derive(Debug, Clone, Default)]
struct FlushProgress {
    /// The last version on disk.
    version: u64,
    /// The version of the last attempt to write the file.
    attempted: u64,
    /// The error of that attempt.
    failure: Option<String>,
}

impl<T> StateFile<T>
where
    T: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Reads the content that a former manager saved. A missing file gives the default. `what` names the content in
    /// errors and log lines.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be read, with the `remedy`: a manager that ignored the file might send clients to a
    /// drained worker.
    pub fn load(path: &Path, what: &'static str, remedy: &str) -> Result<(Self, T)> {
        let content: T =
            read(path).with_context(|| format!("read {what} from {}: {remedy}", path.display()))?;
        Ok((Self::start(path, what, content.clone()), content))
    }

    /// Reads what a former manager observed. A file that cannot be read gives the default and a warning with the
    /// `consequence`: this manager will observe the same again.
    pub fn load_observations(path: &Path, what: &'static str, consequence: &str) -> Self {
        let content = read(path).unwrap_or_else(|error| {
            let path = path.display();
            warn!("{what} cannot be read from {path}: {error:#}; {consequence}");
            T::default()
        });
        Self::start(path, what, content)
    }

    fn start(path: &Path, what: &'static str, content: T) -> Self {
        let (latest, wanted) = watch::channel((0, content));
        let (flushed, progress) = watch::channel(FlushProgress::default());
        let mut writer = JoinSet::new();
        writer.spawn(write_latest(path.to_owned(), what, wanted, flushed));
        Self {
            latest,
            progress,
            _writer: writer,
        }
    }

    /// Starts to write this content as the next version.
    pub fn save(&self, content: T) -> Save {
        let mut version = 0;
        self.latest.send_modify(|latest| {
            version = latest.0 + 1;
            *latest = (version, content);
        });
        let progress = self.progress.clone();
        Save { version, progress }
    }

    /// Returns the latest content.
    pub fn content(&self) -> T {
        self.latest.borrow().1.clone()
    }

    /// Returns a channel of the content, with its version.
    pub fn contents(&self) -> watch::Receiver<(u64, T)> {
        self.latest.subscribe()
    }
}

/// A version of a state file on its way to the disk.
#[derive(Debug)]
pub struct Save {
    version: u64,
    progress: watch::Receiver<FlushProgress>,
}

impl Save {
    /// Waits until the version is on disk; returns the failure if it is not.
    pub async fn failure(mut self) -> Option<String> {
        let is_settled = |it: &FlushProgress| it.attempted >= self.version;
        match timeout(FLUSH_TIMEOUT, self.progress.wait_for(is_settled)).await {
            Ok(Ok(progress)) if progress.version >= self.version => None,
            Ok(Ok(progress)) => progress.failure.clone(),
            Ok(Err(_)) => Some("the manager stops".to_owned()),
            Err(_) => Some("the disk does not answer".to_owned()),
        }
    }
}

async fn write_latest<T: Clone + Serialize + Send + Sync + 'static>(
    path: PathBuf,
    what: &'static str,
    mut wanted: watch::Receiver<(u64, T)>,
    progress: watch::Sender<FlushProgress>,
) {
    while wanted.changed().await.is_ok() {
        loop {
            let (version, content) = wanted.borrow_and_update().clone();
            let target = path.clone();
            let outcome = spawn_blocking(move || write(&target, content)).await;
            let failure = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(format!("write {}: {error}", path.display())),
            };
            let failed_before = progress.borrow().failure.is_some();
            match (&failure, failed_before) {
                (Some(error), false) => warn!(
                    "{what} are in force, but a restarted manager would not have them: {error}; trying \
                     again every {} s",
                    RETRY.as_secs()
                ),
                (None, true) => info!("{what} can be written again"),
                (Some(_), true) | (None, false) => {}
            }
            let succeeded = failure.is_none();
            progress.send_modify(|written| {
                if succeeded {
                    written.version = version;
                }
                (written.attempted, written.failure) = (version, failure);
            });
            if succeeded {
                break;
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                // A new version is written at once, so that its caller gets the result at once.
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The lock of a state file, held by one manager at a time.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl StateLock {
    /// Acquires the lock without waiting. If the lock file cannot be created, there is no lock. Then the state file
    /// cannot be written either, and its first write reports that.
    ///
    /// # Errors
    ///
    /// Says that another manager holds the lock.
    pub fn acquire(state_file: &Path) -> Result<Option<Self>> {
        // Not the state file, which is replaced by renaming.
        let path = state_file.with_extension("lock");
        let file = match open_lock(&path) {
            Ok(file) => file,
            Err(error) => {
                warn!("create {}: {error}", path.display());
                return Ok(None);
            }
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another memlb manager uses the state file {}: stop it first, or give this one a \
                 manager.state_file in another directory (--state-file)",
                state_file.display()
            ),
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }
}

/// Only the owner may open the file, because a process that locks it prevents the manager's start.
fn open_lock(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path)
}

fn read<T: Default + DeserializeOwned>(path: &Path) -> Result<T> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(error.into()),
    };
    let content: Content<T> = serde_json::from_str(&text)?;
    anyhow::ensure!(
        content.version == VERSION,
        "it has version {}, and this memlb reads version {VERSION}",
        content.version
    );
    Ok(content.content)
}

/// Replaces the file as a whole: a power failure leaves the old or the new content.
fn write<T: Serialize>(path: &Path, content: T) -> Result<()> {
    let context = || format!("write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    let mut text = serde_json::to_vec_pretty(&Content {
        version: VERSION,
        content,
    })?;
    text.push(b'\n');
    // Another state file may differ in its extension only, and be written at the same time.
    let draft = path.with_added_extension("draft");
    let mut file = File::create(&draft).with_context(context)?;
    file.write_all(&text).with_context(context)?;
    file.sync_all().with_context(context)?;
    fs::rename(&draft, path).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::AdminOverrides;

    fn orders(worker: &str) -> AdminOverrides {
        let standing = serde_json::json!([{
            "worker": worker, "service": null,
            "state": { "value": "drain", "by": "root", "at_ms": 1 },
        }]);
        serde_json::from_value(standing).unwrap()
    }

    fn open(path: &Path) -> Result<(StateFile<AdminOverrides>, AdminOverrides)> {
        StateFile::load(path, "the orders", "repair or remove the file")
    }

    #[tokio::test]
    async fn keeps_the_orders_for_the_next_manager() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/operator.json");
        let (file, before) = open(&path).unwrap();
        assert!(before.is_empty());
        assert_eq!(file.save(orders("worker1")).failure().await, None);
        assert_eq!(open(&path).unwrap().1, orders("worker1"));
    }

    #[tokio::test]
    async fn reports_a_failed_write_and_retries_with_the_next_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        fs::create_dir(path.with_added_extension("draft")).unwrap();
        let (file, _) = open(&path).unwrap();
        assert!(file.save(orders("worker1")).failure().await.is_some());
        fs::remove_dir(path.with_added_extension("draft")).unwrap();
        // The failure of the former version is not that of this one.
        assert_eq!(file.save(orders("worker2")).failure().await, None);
        assert_eq!(open(&path).unwrap().1, orders("worker2"));
    }

    #[tokio::test]
    async fn files_that_differ_in_their_extension_are_written_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = |extension: &str| directory.path().join("manager").with_extension(extension);
        let texts = ["failing", "liveness"].map(|it| (path(it), "x".repeat(100_000) + it));
        for _ in 0..20 {
            let files = texts
                .each_ref()
                .map(|(path, _)| StateFile::load(path, "a text", "").unwrap().0);
            let saves: Vec<_> = files
                .iter()
                .zip(&texts)
                .map(|(file, (_, text))| file.save(text.clone()))
                .collect();
            for (save, (path, text)) in saves.into_iter().zip(&texts) {
                assert_eq!(save.failure().await, None);
                assert_eq!(&read::<String>(path).unwrap(), text);
            }
        }
    }

    #[tokio::test]
    async fn unreadable_observations_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manager.failing");
        fs::write(&path, "{").unwrap();
        let file = StateFile::load_observations(&path, "a text", "it is observed again");
        assert_eq!(file.content(), String::new());
        assert_eq!(file.save("text".to_owned()).failure().await, None);
        assert_eq!(read::<String>(&path).unwrap(), "text");
    }

    #[test]
    fn one_manager_at_a_time_has_a_state_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/operator.json");
        let lock = StateLock::acquire(&path).unwrap();
        assert!(lock.is_some());
        write(&path, orders("worker1")).unwrap();
        let error = StateLock::acquire(&path).unwrap_err().to_string();
        assert!(error.contains("new/operator.json: stop it"), "{error}");
        assert!(error.contains("manager.state_file"), "{error}");
        drop(lock);
        assert!(StateLock::acquire(&path).unwrap().is_some());
        // Another kind of file in its place stops no manager.
        fs::create_dir(directory.path().join("other.lock")).unwrap();
        let other = StateLock::acquire(&directory.path().join("other.json"));
        assert!(other.unwrap().is_none());
    }

    #[tokio::test]
    async fn refuses_unknown_versions_and_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        for (text, says) in [
            ("{\"form\":1,", "repair or remove"),
            ("{\"form\":2,\"orders\":[]}", "version 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", open(&path).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
