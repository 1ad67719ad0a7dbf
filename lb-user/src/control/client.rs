//! The client of the control socket.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{UnixStream, unix::OwnedReadHalf},
    time::timeout,
};

use super::{ErrorReply, Request};

const TIMEOUT: Duration = Duration::from_secs(15);

/// The error when the manager ends a reply early, as when it stops.
pub const DISCONNECTED: &str = "the manager closed the connection";

/// Sends requests to the manager at one control socket.
#[derive(Debug, Clone)]
pub struct ControlClient {
    path: PathBuf,
}

/// Why a request has no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The manager refused the request, for example because of an unknown worker.
    #[error("{}", .0.error)]
    Refused(ErrorReply),
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for ClientError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl ControlClient {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    ///
    /// Says that no manager answers, or why it refused the request.
    pub async fn request<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        self.request_within(request, Duration::ZERO).await
    }

    /// Sends a request and waits for its reply for `more` than usual.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub async fn request_within<T: DeserializeOwned>(
        &self,
        request: &Request,
        more: Duration,
    ) -> Result<T, ClientError> {
        let mut lines = self.stream(request).await?;
        let line = timeout(TIMEOUT.saturating_add(more), lines.next_line())
            .await
            .context("the manager runs and does not reply; its log says more (journalctl -u memlb-manager)")?
            .context("read the manager's reply")?
            .context(DISCONNECTED)?;
        parse_reply(&line)
    }

    /// Sends a request and returns the lines of its reply.
    ///
    /// # Errors
    ///
    /// Says that no manager answers.
    pub async fn stream(&self, request: &Request) -> Result<Lines<BufReader<OwnedReadHalf>>> {
        let path = self.path.display();
        let stream = UnixStream::connect(&self.path).await.map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "use sudo, or join the socket's group",
                _ => "start a manager, or name its socket with --control-socket",
            };
            anyhow!("no manager answers at {path}: {error}; {advice}")
        })?;
        let (reader, mut writer) = stream.into_split();
        let mut line = serde_json::to_vec(request).context("encode the request")?;
        line.push(b'\n');
        writer.write_all(&line).await.context("send the request")?;
        // The writing half stays open while the reply is read.
        writer.forget();
        Ok(BufReader::new(reader).lines())
    }
}

/// Parses a line of a reply.
///
/// # Errors
///
/// Returns the manager's error, or says that the line is not a reply of this type.
pub fn parse_reply<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    if let Ok(refused) = serde_json::from_str::<ErrorReply>(line) {
        return Err(ClientError::Refused(refused));
    }
    let reply = serde_json::from_str(line).context(
        "parse the manager's reply: it may be of another version; `memlb --version` prints this program's",
    )?;
    Ok(reply)
}
