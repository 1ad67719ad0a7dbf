//! What the next manager must know, on disk: the operator's standing orders, and who joined by itself.

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
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tracing::{info, warn};

const FORM: u32 = 1;

/// How long after a failure the file is written again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Content<T> {
    form: u32,
    #[serde(alias = "orders")]
    kept: T,
}

/// Writes its content in a task of its own, the latest and never a half of it.
#[derive(Debug)]
pub struct Kept<T> {
    latest: watch::Sender<(u64, T)>,
    written: watch::Receiver<Written>,
    writing: JoinHandle<()>,
}

/// How far the file has got.
#[derive(Debug, Clone, Default)]
pub struct Written {
    pub version: u64,
    /// Why the version after this one could not be written at the last attempt.
    pub failure: Option<String>,
}

impl<T> Kept<T>
where
    T: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Reads what an earlier manager kept; a file that does not exist says nothing.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be understood: to go on without it might send clients to a worker
    /// that is being taken apart. `what` is in it, and `remedy` is what a person can do.
    pub fn open(path: &Path, what: &'static str, remedy: &str) -> Result<(Self, T)> {
        let content: T =
            read(path).with_context(|| format!("read {what} from {}: {remedy}", path.display()))?;
        let (latest, wanted) = watch::channel((0, content.clone()));
        let (progress, written) = watch::channel(Written::default());
        let writing = tokio::spawn(write_latest(path.to_owned(), what, wanted, progress));
        let file = Self {
            latest,
            written,
            writing,
        };
        Ok((file, content))
    }

    /// Has this written, and returns the version under which [`Self::written`] counts it.
    pub fn keep(&self, content: T) -> u64 {
        let mut version = 0;
        self.latest.send_modify(|latest| {
            version = latest.0 + 1;
            *latest = (version, content);
        });
        version
    }

    pub fn written(&self) -> watch::Receiver<Written> {
        self.written.clone()
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

async fn write_latest<T: Clone + Serialize + Send + Sync + 'static>(
    path: PathBuf,
    what: &'static str,
    mut wanted: watch::Receiver<(u64, T)>,
    progress: watch::Sender<Written>,
) {
    while wanted.changed().await.is_ok() {
        loop {
            let (version, content) = wanted.borrow_and_update().clone();
            let target = path.clone();
            let outcome = tokio::task::spawn_blocking(move || write(&target, content)).await;
            let failure = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(format!("write {}: {error}", path.display())),
            };
            let failed_before = progress.borrow().failure.is_some();
            match (&failure, failed_before) {
                (Some(error), false) => warn!(
                    "{what} are in force, but a restarted manager would not know them: {error}; trying \
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
                written.failure = failure;
            });
            if succeeded {
                break;
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                // The next order tries at once, and says at once whether it is kept.
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The right to write a file, held by one manager at a time.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Lock {
    /// Takes the lock of the state file at once. Where there is no place for it, nothing can be kept
    /// either, which is said when something is.
    ///
    /// # Errors
    ///
    /// Says that another manager has it.
    pub fn take(state_file: &Path) -> Result<Option<Self>> {
        // Not the file itself, which is replaced as a whole.
        let path = state_file.with_extension("lock");
        let file = match open_lock(&path) {
            Ok(file) => file,
            Err(error) => {
                warn!("{} cannot be made: {error}", path.display());
                return Ok(None);
            }
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another memlb manager keeps its orders in {}: stop it first, or give this one a \
                 manager.state_file in a directory of its own (--state-file)",
                state_file.display()
            ),
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }
}

/// Nobody else may open it: to lock it would keep the manager from starting.
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
        content.form == FORM,
        "it has form {}, and this memlb reads form {FORM}",
        content.form
    );
    Ok(content.kept)
}

/// Replaces the file as a whole; a power cut leaves the old one or the new one.
fn write<T: Serialize>(path: &Path, kept: T) -> Result<()> {
    let context = || format!("write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    let mut text = serde_json::to_vec_pretty(&Content { form: FORM, kept })?;
    text.push(b'\n');
    let draft = path.with_extension("draft");
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
            "hold": { "value": "drain", "by": "root", "at_ms": 1 },
        }]);
        serde_json::from_value(standing).unwrap()
    }

    fn open(path: &Path) -> Result<(Kept<AdminOverrides>, AdminOverrides)> {
        Kept::open(path, "the orders", "mend or remove the file")
    }

    async fn settled(file: &Kept<AdminOverrides>, version: u64) -> Written {
        let mut written = file.written();
        let done = |it: &Written| it.version >= version || it.failure.is_some();
        written.wait_for(done).await.unwrap().clone()
    }

    #[tokio::test]
    async fn keeps_the_orders_for_the_next_manager() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/operator.json");
        let (file, before) = open(&path).unwrap();
        assert!(before.is_empty());
        let version = file.keep(orders("worker1"));
        assert_eq!(settled(&file, version).await.failure, None);
        assert_eq!(open(&path).unwrap().1, orders("worker1"));
    }

    #[tokio::test]
    async fn says_why_it_cannot_keep_them_and_tries_again_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        fs::create_dir(path.with_extension("draft")).unwrap();
        let (file, _) = open(&path).unwrap();
        let version = file.keep(orders("worker1"));
        assert!(settled(&file, version).await.failure.is_some());
        fs::remove_dir(path.with_extension("draft")).unwrap();
        let version = file.keep(orders("worker2"));
        let mut written = file.written();
        written.wait_for(|it| it.version >= version).await.unwrap();
        assert_eq!(open(&path).unwrap().1, orders("worker2"));
    }

    #[test]
    fn one_manager_at_a_time_has_a_state_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/operator.json");
        let lock = Lock::take(&path).unwrap();
        assert!(lock.is_some());
        write(&path, orders("worker1")).unwrap();
        let error = Lock::take(&path).unwrap_err().to_string();
        assert!(error.contains("new/operator.json: stop it"), "{error}");
        assert!(error.contains("manager.state_file"), "{error}");
        drop(lock);
        assert!(Lock::take(&path).unwrap().is_some());
        // What stands in its place stops no manager.
        fs::create_dir(directory.path().join("other.lock")).unwrap();
        let other = Lock::take(&directory.path().join("other.json"));
        assert!(other.unwrap().is_none());
    }

    #[tokio::test]
    async fn refuses_what_it_does_not_understand() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        for (text, says) in [
            ("{\"form\":1,", "mend or remove"),
            ("{\"form\":2,\"orders\":[]}", "form 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", open(&path).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
