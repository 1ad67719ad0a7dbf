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

use super::api::State;

/// How long the API may take for one poll.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer, in bytes.
const MOST: usize = 64 * 1024 * 1024;

/// `{"type":["service","node","container"],"event":["create","update","remove","start","kill","die"]}`
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22service%22%2C%22node%22%2C%22container%22%5D%2C\
                      %22event%22%3A%5B%22create%22%2C%22update%22%2C%22remove%22%2C%22start%22%2C%22kill%22%2C\
                      %22die%22%5D%7D";

/// The API of one Docker daemon.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

/// A connection whose task ends with it.
struct Connection {
    sender: SendRequest<String>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
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
    /// Says that the API does not answer, or what it refuses.
    pub async fn state(&self) -> Result<State> {
        let socket = self.socket.display();
        let read = timeout(TIMEOUT, async {
            let mut connection = self.connect().await?;
            // Tasks last: a task whose service or node is missing would look like a fault.
            Ok::<_, anyhow::Error>(State {
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

    /// Calls `woken` at each event of services, nodes and containers, until the API ends the stream.
    ///
    /// # Errors
    ///
    /// Says that the API does not answer.
    pub async fn follow_events(&self, mut woken: impl FnMut()) -> Result<()> {
        let mut connection = timeout(TIMEOUT, self.connect()).await??;
        let mut body = connection.send(EVENTS).await?;
        while frame(&mut body).await?.is_some() {
            woken();
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            // The request fails with the same error.
            _ = connection.await;
        });
        Ok(Connection { sender, task })
    }
}

fn unreachable(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run this as a member of its group, docker",
        _ => "does dockerd run, and with this --docker-socket?",
    };
    anyhow!(
        "Docker's API at {} does not answer: {error}; {advice}",
        socket.display()
    )
}

impl Connection {
    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let mut body = self.send(path).await?;
        let text = collect(&mut body).await?;
        serde_json::from_slice(&text)
            .with_context(|| format!("understand the answer of Docker's API to {path}"))
    }

    async fn send(&mut self, path: &str) -> Result<Incoming> {
        let context = || format!("ask Docker's API for {path}");
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
            text.len() + part.len() <= MOST,
            "Docker's API answers with more than {MOST} bytes"
        );
        text.extend_from_slice(&part);
    }
    Ok(text)
}

/// Returns the next part of a body; nothing at its end.
async fn frame(body: &mut Incoming) -> Result<Option<hyper::body::Bytes>> {
    loop {
        let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await else {
            return Ok(None);
        };
        if let Ok(data) = frame
            .context("read the answer of Docker's API")?
            .into_data()
        {
            return Ok(Some(data));
        }
    }
}
