//! The HTTP server: metrics, health, API and web page, read-only, on a thread of its own.
//!
//! The manager's task answers a question with a copy of what it has decided, and never waits for
//! anybody here; everything slower, such as reading the maps, happens on this side.

mod api;
mod asker;
mod connections;
mod error;
mod events;
mod guard;
mod health;
mod metrics;
mod openapi;
mod page;
mod places;
mod timeline;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use axum::{Router, middleware, routing::get};
use tokio::sync::{Semaphore, oneshot};

pub use asker::Asker;

use self::{guard::Names, timeline::Recorder};
use crate::{
    feed::Feed,
    meters::Meters,
    sockets::{Receiver, listener},
};

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

/// Where answers come from.
#[derive(Debug, Clone)]
pub struct Sources {
    pub asker: Asker,
    pub feed: Feed,
    pub meters: Meters,
}

/// What every handler gets.
#[derive(Debug, Clone)]
struct Shared {
    sources: Sources,
    recorder: Recorder,
    /// Who may still listen to events.
    listeners: Arc<Semaphore>,
}

/// The serving thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// Says why the address cannot be used, and what to do.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| explain(address, &error))?;
        listener
            .set_nonblocking(true)
            .context("make the HTTP socket non-blocking")?;
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the answer is dropped.
    ///
    /// # Errors
    ///
    /// Says why the thread cannot be started.
    ///
    /// `names` are those by which it answers beside addresses and the machine's own.
    pub fn start(self, sources: Sources, names: &[String]) -> Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .context("start the runtime of the HTTP server")?;
        let (asker, recorder) = (sources.asker.clone(), Recorder::default());
        let names = Names::new(self.address.ip(), names);
        let app = router(sources, recorder.clone(), names);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // The other end only ever goes away.
                        _ = stopped => {}
                        () = connections::serve(self.listener, app) => {}
                        () = recorder.record(asker) => {}
                    }
                });
                // A map may be being read; nobody waits for it any more.
                runtime.shutdown_background();
            })
            .context("start the thread of the HTTP server")?;
        Ok(Running {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the HTTP server has panicked");
        }
    }
}

fn explain(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = match listener(address.ip(), address.port()) {
                Receiver::Known(holder) => format!("by {holder}"),
                _ => "by somebody".to_owned(),
            };
            format!(
                ": the port is in use {holder}, perhaps another manager; stop it, or choose another \
                 address with --http-listen, or none with --http-listen \"\""
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            ": this machine does not have that address; see --http-listen".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            ": ports below 1024 need CAP_NET_BIND_SERVICE; see --http-listen".to_owned()
        }
        _ => String::new(),
    };
    anyhow::anyhow!("serve HTTP at {address}: {error}{hint}")
}

fn router(sources: Sources, recorder: Recorder, names: Names) -> Router {
    let shared = Shared {
        sources,
        recorder,
        listeners: Arc::new(Semaphore::new(events::LISTENERS)),
    };
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .nest("/api/v1", api::router())
        .merge(health::router())
        .merge(page::router())
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::read_only)
        .with_state(shared)
        .layer(middleware::from_fn_with_state(
            Arc::new(names),
            guard::guard,
        ))
}
