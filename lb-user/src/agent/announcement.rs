//! `memlb agent pause`: a hook on the worker requests that the running agent announces a pause.
//!
//! The socket is in the abstract namespace, so that it needs no directory; root and the agent's own
//! user may use it.

use std::{
    os::{linux::net::SocketAddrExt, unix::net as std_unix},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

/// How long the other side may take to say what it wants, or what has come of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pause to be announced; the reply says why that failed, if it did.
#[derive(Debug)]
pub(super) struct PauseRequest {
    pub for_ms: u64,
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// Listens for hooks on this machine; without a socket there are none.
pub(super) fn listen(worker: &str) -> mpsc::Receiver<PauseRequest> {
    let (requests, received) = mpsc::channel(1);
    match bind(worker) {
        Ok(listener) => {
            tokio::spawn(serve(listener, requests));
        }
        Err(error) => warn!("memlb agent pause will not reach this agent: {error:#}"),
    }
    received
}

/// Has the agent of this name on this machine announce a pause.
///
/// # Errors
///
/// Says that there is no such agent, that the user may not send to it, or which manager did not confirm.
pub async fn announce_pause(worker: &str, duration: Duration) -> Result<()> {
    let address = address(worker)?;
    let socket = std_unix::UnixStream::connect_addr(&address).with_context(|| {
        format!("no agent named {worker} of this memlb runs on this machine (give its --name)")
    })?;
    socket.set_nonblocking(true).context("open a socket")?;
    let mut socket = UnixStream::from_std(socket).context("open a socket")?;
    let for_ms = lb_core::milliseconds(duration);
    let mut answer = String::new();
    let asked = async {
        socket.write_all(&for_ms.to_be_bytes()).await?;
        socket.read_to_string(&mut answer).await
    };
    let asked = timeout(PATIENCE, asked).await;
    asked
        .context("the agent does not answer")?
        .context("ask the agent")?;
    ensure!(answer == DONE, "the agent refuses: {answer}");
    Ok(())
}

const DONE: &str = "announced";

fn address(worker: &str) -> Result<std_unix::SocketAddr> {
    std_unix::SocketAddr::from_abstract_name(format!("memlb-agent/{worker}"))
        .context("name a socket")
}

fn bind(worker: &str) -> Result<UnixListener> {
    let context = "listen for memlb agent pause";
    let listener = std_unix::UnixListener::bind_addr(&address(worker)?).context(context)?;
    listener.set_nonblocking(true).context(context)?;
    UnixListener::from_std(listener).context(context)
}

async fn serve(listener: UnixListener, requests: mpsc::Sender<PauseRequest>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let answered = timeout(PATIENCE, serve_client(socket, &requests)).await;
                if let Ok(Err(error)) = answered {
                    debug!("a hook: {error:#}");
                }
            }
            Err(error) => {
                debug!("a hook: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client(mut socket: UnixStream, requests: &mpsc::Sender<PauseRequest>) -> Result<()> {
    let user = socket.peer_cred().context("read the peer's user")?.uid();
    // Also from a user who may not announce it: a peer that still writes when the socket closes gets EPIPE, not the answer.
    let for_ms = socket.read_u64().await.context("read")?;
    let answer = if user == 0 || user == geteuid().as_raw() {
        let (reply, outcome) = oneshot::channel();
        requests.send(PauseRequest { for_ms, reply }).await?;
        outcome.await?
    } else {
        Err("only root and the agent's own user may announce a pause".to_owned())
    };
    let text = answer.err();
    socket
        .write_all(text.as_deref().unwrap_or(DONE).as_bytes())
        .await
        .context("answer")
}
