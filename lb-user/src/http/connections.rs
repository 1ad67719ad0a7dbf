//! Takes connections in, a bounded number of them, each with a bounded patience.

use std::{net::TcpListener, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{net::TcpStream, sync::Semaphore, time::sleep};
use tracing::{debug, error};

/// Further clients wait in the kernel's queue until one of these is done.
const CONNECTIONS: usize = 64;

/// A client has this long to send a request's header, and to take in what it asked for; a kept-alive
/// connection is closed when nothing is asked for this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request's header may be no longer than this, in bytes.
const HEADER_LIMIT: usize = 16 * 1024;

/// Serves one connection after another, each in a task of its own, for as long as it is polled.
pub async fn serve(listener: TcpListener, app: Router) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!("take over the HTTP socket: {error}"),
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, app).await {
                        debug!("the HTTP connection of {from} ended early: {error}");
                    }
                    drop(permit);
                });
            }
            // Out of descriptors, for one: others may close theirs meanwhile.
            Err(error) => {
                debug!("accept an HTTP connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, app: Router) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let patience = u32::try_from(PATIENCE.as_millis())?;
    setsockopt(&stream, TcpUserTimeout, &patience)?;
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await?;
    Ok(())
}
