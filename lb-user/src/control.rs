//! The control socket: an operator's questions to a running manager, one JSON line each way.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use crate::{
    datapath::Stats,
    status::{Decided, Status},
};

/// A request may be no longer than this, in bytes, and must come within this time.
const REQUEST_LIMIT: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
struct Refused {
    error: String,
}

/// The main task answers with its view; everything slower happens in the asker's own task.
pub type Question = oneshot::Sender<Decided>;

/// The listening socket, removed when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

/// Where the asker's task reads the counters.
#[derive(Debug, Clone)]
pub struct Counters {
    pub pin_path: PathBuf,
    pub idle: Duration,
}

impl Server {
    /// Listens at `path`, for the owner and its group only. A socket that nobody answers at is
    /// taken over.
    ///
    /// # Errors
    ///
    /// Says that another manager answers there, or why the socket cannot be made.
    pub async fn bind(path: &Path) -> Result<Self> {
        let context = || format!("listen at the control socket {}", path.display());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(context)?;
        }
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "another manager answers at the control socket {}: stop it, or choose another with \
                 --control-socket",
                path.display()
            );
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(context);
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(context)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(context)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves one asker after another, each in a task of its own, for as long as it is polled.
    pub async fn serve(&self, questions: mpsc::Sender<Question>, counters: Counters) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (questions, counters) = (questions.clone(), counters.clone());
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, questions, counters).await {
                            debug!("a control connection ended early: {error:#}");
                        }
                    });
                }
                // Out of descriptors, for one: others may close theirs meanwhile.
                Err(error) => {
                    debug!("accept a control connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is lost if it is gone already.
        _ = fs::remove_file(&self.path);
    }
}

async fn answer(
    mut stream: UnixStream,
    questions: mpsc::Sender<Question>,
    counters: Counters,
) -> Result<()> {
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    timeout(
        PATIENCE,
        BufReader::new(reader.take(REQUEST_LIMIT)).read_line(&mut line),
    )
    .await
    .context("wait for the request")??;
    let mut reply = match status(&line, questions, counters).await {
        Ok(status) => serde_json::to_vec(&status)?,
        Err(error) => serde_json::to_vec(&Refused {
            error: format!("{error:#}"),
        })?,
    };
    reply.push(b'\n');
    timeout(PATIENCE, writer.write_all(&reply))
        .await
        .context("wait for the reader")??;
    Ok(())
}

async fn status(
    line: &str,
    questions: mpsc::Sender<Question>,
    counters: Counters,
) -> Result<Status> {
    let Request::Status = serde_json::from_str(line)
        .context("not a request this manager knows; expected {\"verb\":\"status\"}")?;
    let (question, decided) = oneshot::channel();
    questions
        .send(question)
        .await
        .context("the manager stops")?;
    let decided = decided.await.context("the manager stops")?;
    // Reading a full flow table takes a while, and must not hold up a heartbeat.
    let stats = tokio::task::spawn_blocking(move || Stats::read(&counters.pin_path, counters.idle))
        .await
        .context("read the counters")??;
    Ok(Status::new(decided, &stats))
}

/// Asks the manager at `path` for its status.
///
/// # Errors
///
/// Says that nobody answers there, or what the manager answered instead.
pub async fn ask_status(path: &Path) -> Result<Status> {
    let mut stream = UnixStream::connect(path).await.with_context(|| {
        format!(
            "no manager answers at {}: is it running, and with this --control-socket?",
            path.display()
        )
    })?;
    let mut request = serde_json::to_vec(&Request::Status)?;
    request.push(b'\n');
    stream
        .write_all(&request)
        .await
        .context("send the request")?;
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply))
        .await
        .context("wait for the manager's answer")??;
    if let Ok(Refused { error }) = serde_json::from_str(&reply) {
        bail!("the manager refused: {error}");
    }
    serde_json::from_str(&reply).context("understand the manager's answer")
}
