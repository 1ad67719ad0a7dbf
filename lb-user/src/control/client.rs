//! The operator's side of the control socket.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{UnixStream, unix::OwnedReadHalf},
    time::timeout,
};

use super::{Refused, Request};

const PATIENCE: Duration = Duration::from_secs(15);

/// Asks the manager at one control socket.
#[derive(Debug, Clone)]
pub struct Asker {
    path: PathBuf,
}

/// Why there is no answer to a request.
#[derive(Debug)]
pub enum AskError {
    /// The request is wrong by itself: a worker that does not exist, for one.
    Refused(Refused),
    Failed(anyhow::Error),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => f.write_str(&refused.error),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for AskError {}

impl From<anyhow::Error> for AskError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl Asker {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    ///
    /// Says that nobody answers there, or what the manager answered instead.
    pub async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, AskError> {
        let mut lines = self.stream(request).await?;
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .context("wait for the manager's answer")?
            .context("wait for the manager's answer")?
            .context("the manager went away without an answer")?;
        understand(&line)
    }

    /// Sends one request and returns the lines of its reply.
    ///
    /// # Errors
    ///
    /// Says that nobody answers there.
    pub async fn stream(&self, request: &Request) -> Result<Lines<BufReader<OwnedReadHalf>>> {
        let path = self.path.display();
        let stream = UnixStream::connect(&self.path).await.map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "you may not: use sudo, or join the socket's group"
                }
                _ => "is it running, and with this --control-socket?",
            };
            anyhow!("no manager answers at {path}: {error}; {advice}")
        })?;
        let (reader, mut writer) = stream.into_split();
        let mut line = serde_json::to_vec(request).context("encode the request")?;
        line.push(b'\n');
        writer.write_all(&line).await.context("send the request")?;
        // The half that is sent stays open as long as the reply is read.
        writer.forget();
        Ok(BufReader::new(reader).lines())
    }
}

/// Tells a reply from a refusal.
///
/// # Errors
///
/// Is the refusal, or says that the line is no such reply.
pub fn understand<T: DeserializeOwned>(line: &str) -> Result<T, AskError> {
    if let Ok(refused) = serde_json::from_str::<Refused>(line) {
        return Err(AskError::Refused(refused));
    }
    let reply = serde_json::from_str(line).context(
        "understand the manager's answer; is it of another version? `memlb --version` is this one's",
    )?;
    Ok(reply)
}
