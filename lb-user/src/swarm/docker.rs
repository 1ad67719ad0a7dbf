//! Requests to Docker's API over its Unix socket.

use std::{
    future::poll_fn,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use hyper::{
    Request, StatusCode,
    body::{Body, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use super::api::SwarmState;

/// How long the API may take for one poll.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest response, in bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// `{"type":["service","node","container"],"event":["create","update","remove","start","kill","die"]}`
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22service%22%2C%22node%22%2C%22container%22%5D%2C\
                      %22event%22%3A%5B%22create%22%2C%22update%22%2C%22remove%22%2C%22start%22%2C%22kill%22%2C\
                      %22die%22%5D%7D";

/// The API of one Docker daemon.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

/// A connection to the API. Its task ends with it.
struct ApiConnection {
    sender: SendRequest<String>,
    task: JoinHandle<()>,
}

impl Drop for ApiConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Deserialize)]
struct ApiError {
    message: String,
}

impl Docker {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads services, nodes and tasks.
    ///
    /// # Errors
    ///
    /// The API does not answer, or refuses a request.
    pub async fn state(&self) -> Result<SwarmState> {
        let socket = self.socket.display();
        let read = timeout(TIMEOUT, async {
            let mut connection = self.connect().await?;
            // Tasks last, so that their services and nodes are known.
            Ok::<_, anyhow::Error>(SwarmState {
                services: connection.get("/services").await?,
                nodes: connection.get("/nodes").await?,
                tasks: connection.get("/tasks").await?,
            })
        });
        match read.await {
            Ok(state) => state,
            Err(_) => bail!("Docker's API at {socket} has not answered for {TIMEOUT:?}"),
        }
    }

    /// Calls `on_event` at each event of services, nodes and containers, until the API ends the stream.
    ///
    /// # Errors
    ///
    /// The API does not answer.
    pub async fn watch_events(&self, mut on_event: impl FnMut()) -> Result<()> {
        let mut connection = timeout(TIMEOUT, self.connect()).await??;
        let mut body = connection.send(EVENTS).await?;
        while frame(&mut body).await?.is_some() {
            on_event();
        }
        Ok(())
    }

    async fn connect(&self) -> Result<ApiConnection> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            // The request fails with the same error.
            _ = connection.await;
        });
        Ok(ApiConnection { sender, task })
    }
}

fn unreachable(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run this as a member of its group, docker",
        _ => "check that dockerd runs with this --docker-socket",
    };
    anyhow!(
        "Docker's API at {} does not answer: {error}; {advice}",
        socket.display()
    )
}

impl ApiConnection {
    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let mut body = self.send(path).await?;
        let text = collect(&mut body).await?;
        serde_json::from_slice(&text)
            .with_context(|| format!("parse the response of Docker's API to {path}"))
    }

    async fn send(&mut self, path: &str) -> Result<Incoming> {
        let context = || format!("request {path} from Docker's API");
        let request = Request::get(path)
            .header("Host", "docker")
            .body(String::new())?;
        self.sender.ready().await.with_context(context)?;
        let response = self
            .sender
            .send_request(request)
            .await
            .with_context(context)?;
        let status = response.status();
        let mut body = response.into_body();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = collect(&mut body).await?;
        let message = match serde_json::from_slice::<ApiError>(&text) {
            Ok(error) => error.message,
            Err(_) => String::from_utf8_lossy(&text).into_owned(),
        };
        bail!("Docker's API answers {status} to {path}: {message}")
    }
}

async fn collect(body: &mut Incoming) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(part) = frame(body).await? {
        anyhow::ensure!(
            text.len() + part.len() <= MAX_BYTES,
            "the response of Docker's API has more than {MAX_BYTES} bytes"
        );
        text.extend_from_slice(&part);
    }
    Ok(text)
}

/// Returns the next part of a body; `None` at its end.
async fn frame(body: &mut Incoming) -> Result<Option<hyper::body::Bytes>> {
    loop {
        let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await else {
            return Ok(None);
        };
        if let Ok(data) = frame
            .context("read the response of Docker's API")?
            .into_data()
        {
            return Ok(Some(data));
        }
    }
}
