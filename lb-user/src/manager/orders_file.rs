//! The operator's standing orders on disk: a worker once drained stays drained, whatever becomes of
//! the manager.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tracing::{info, warn};

use crate::core::Orders;

const FORM: u32 = 1;

/// How long after a failure the file is written again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    form: u32,
    orders: Orders,
}

/// Writes the orders in a task of its own, the latest of them and never a half of them.
#[derive(Debug)]
pub struct OrdersFile {
    latest: watch::Sender<(u64, Orders)>,
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

impl OrdersFile {
    /// Reads what an earlier manager kept; a file that does not exist says nothing.
    ///
    /// # Errors
    ///
    /// Says why the file cannot be understood: to go on without it might send clients to a worker
    /// that is being taken apart.
    pub fn open(path: &Path) -> Result<(Self, Orders)> {
        let orders = read(path)?;
        let (latest, wanted) = watch::channel((0, orders.clone()));
        let (progress, written) = watch::channel(Written::default());
        let writing = tokio::spawn(write_latest(path.to_owned(), wanted, progress));
        let file = Self {
            latest,
            written,
            writing,
        };
        Ok((file, orders))
    }

    /// Has these orders written, and returns the version under which [`Self::written`] counts them.
    pub fn keep(&self, orders: Orders) -> u64 {
        let mut version = 0;
        self.latest.send_modify(|latest| {
            version = latest.0 + 1;
            *latest = (version, orders);
        });
        version
    }

    pub fn written(&self) -> watch::Receiver<Written> {
        self.written.clone()
    }
}

impl Drop for OrdersFile {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

async fn write_latest(
    path: PathBuf,
    mut wanted: watch::Receiver<(u64, Orders)>,
    progress: watch::Sender<Written>,
) {
    while wanted.changed().await.is_ok() {
        loop {
            let (version, orders) = wanted.borrow_and_update().clone();
            let target = path.clone();
            let outcome = tokio::task::spawn_blocking(move || write(&target, orders)).await;
            let failure = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(format!("write {}: {error}", path.display())),
            };
            let failed_before = progress.borrow().failure.is_some();
            match (&failure, failed_before) {
                (Some(error), false) => warn!(
                    "the operator's orders are in force, but a restarted manager would not know \
                     them: {error}; trying again every {} s",
                    RETRY.as_secs()
                ),
                (None, true) => info!("the operator's orders can be written again"),
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

fn read(path: &Path) -> Result<Orders> {
    let advice = || {
        format!(
            "read the operator's orders from {}: mend or remove the file (it says which workers are \
             drained), or name another with --state-file",
            path.display()
        )
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Orders::default()),
        Err(error) => return Err(error).with_context(advice),
    };
    let content: Content = serde_json::from_str(&text).with_context(advice)?;
    anyhow::ensure!(
        content.form == FORM,
        "{}: it has form {}, and this memlb reads form {FORM}",
        advice(),
        content.form
    );
    Ok(content.orders)
}

/// Replaces the file as a whole; a power cut leaves the old one or the new one.
fn write(path: &Path, orders: Orders) -> Result<()> {
    let context = || format!("write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    let mut text = serde_json::to_vec_pretty(&Content { form: FORM, orders })?;
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

    fn orders(worker: &str) -> Orders {
        let standing = serde_json::json!([{
            "worker": worker, "service": null,
            "hold": { "value": "drain", "by": "root", "at_ms": 1 },
        }]);
        serde_json::from_value(standing).unwrap()
    }

    async fn settled(file: &OrdersFile, version: u64) -> Written {
        let mut written = file.written();
        let done = |it: &Written| it.version >= version || it.failure.is_some();
        written.wait_for(done).await.unwrap().clone()
    }

    #[tokio::test]
    async fn keeps_the_orders_for_the_next_manager() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/operator.json");
        let (file, before) = OrdersFile::open(&path).unwrap();
        assert!(before.is_empty());
        let version = file.keep(orders("worker1"));
        assert_eq!(settled(&file, version).await.failure, None);
        assert_eq!(OrdersFile::open(&path).unwrap().1, orders("worker1"));
    }

    #[tokio::test]
    async fn says_why_it_cannot_keep_them_and_tries_again_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        fs::create_dir(path.with_extension("draft")).unwrap();
        let (file, _) = OrdersFile::open(&path).unwrap();
        let version = file.keep(orders("worker1"));
        assert!(settled(&file, version).await.failure.is_some());
        fs::remove_dir(path.with_extension("draft")).unwrap();
        let version = file.keep(orders("worker2"));
        let mut written = file.written();
        written.wait_for(|it| it.version >= version).await.unwrap();
        assert_eq!(OrdersFile::open(&path).unwrap().1, orders("worker2"));
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
            let error = format!("{:#}", OrdersFile::open(&path).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
