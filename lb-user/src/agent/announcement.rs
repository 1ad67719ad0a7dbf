//! `memlb agent pause`: a hook on the worker makes the running agent announce a pause.
//!
//! The socket is in the abstract namespace, so that it needs no directory. Root and the agent's own user may use it.

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

/// The timeout of a request, on both sides.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A request to announce a pause. The reply says why that failed, if it did.
#[derive(Debug)]
pub(super) struct PauseRequest {
    pub for_ms: u64,
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// Listens for requests of hooks on this machine. Without a socket, there are none.
pub(super) fn listen(worker: &str) -> mpsc::Receiver<PauseRequest> {
    let (requests, received) = mpsc::channel(1);
    match bind(worker) {
        Ok(listener) => {
            tokio::spawn(serve(listener, requests));
        }
        Err(error) => warn!("memlb agent pause cannot reach this agent: {error:#}"),
    }
    received
}

/// Makes the agent of this name on this machine announce a pause.
///
/// # Errors
///
/// Says that there is no such agent, that the user has no permission, or which manager did not confirm the pause.
pub async fn announce_pause(worker: &str, duration: Duration) -> Result<()> {
    let address = address(worker)?;
    let socket = std_unix::UnixStream::connect_addr(&address).with_context(|| {
        format!("no agent named {worker} of this memlb runs on this machine (give its --name)")
    })?;
    socket.set_nonblocking(true).context("open a socket")?;
    let mut socket = UnixStream::from_std(socket).context("open a socket")?;
    let for_ms = lb_core::milliseconds(duration);
    let mut reply = String::new();
    let exchange = async {
        socket.write_all(&for_ms.to_be_bytes()).await?;
        socket.read_to_string(&mut reply).await
    };
    let exchange = timeout(TIMEOUT, exchange).await;
    exchange
        .context("the agent does not answer")?
        .context("send a request to the agent")?;
    ensure!(reply == DONE, "the agent refuses: {reply}");
    Ok(())
}

/// The reply to a request that succeeded.
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
                let served = timeout(TIMEOUT, serve_client(socket, &requests)).await;
                if let Ok(Err(error)) = served {
                    debug!("a request to pause: {error:#}");
                }
            }
            Err(error) => {
                debug!("a request to pause: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client(mut socket: UnixStream, requests: &mpsc::Sender<PauseRequest>) -> Result<()> {
    let user = socket.peer_cred().context("read the peer's user")?.uid();
    // Also from a user who may not announce it: a client that still writes when the socket closes gets EPIPE, not the
    // reply.
    let for_ms = socket.read_u64().await.context("read")?;
    let outcome = if user == 0 || user == geteuid().as_raw() {
        let (reply, announced) = oneshot::channel();
        requests.send(PauseRequest { for_ms, reply }).await?;
        announced.await?
    } else {
        Err("only root and the agent's own user may announce a pause".to_owned())
    };
    let problem = outcome.err();
    let text = problem.as_deref().unwrap_or(DONE);
    socket.write_all(text.as_bytes()).await.context("reply")
}
