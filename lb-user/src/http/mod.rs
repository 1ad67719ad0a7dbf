//! The HTTP server: metrics, health, API and web page, read-only, on a thread of its own.
//!
//! The manager's task only sends a snapshot, and never waits for an HTTP client. Slow work, such as reading maps,
//! happens in this thread.

mod api;
mod connections;
mod error;
mod events;
mod guard;
mod health;
mod metrics;
mod openapi;
mod page;
mod slots;
mod state;
mod timeline;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{Router, middleware, routing::get};
use tokio::sync::Semaphore;

use self::{guard::AllowedHosts, state::HttpState, timeline::Recorder};
use crate::{manager::ManagerHandle, runtime_thread::RuntimeThread, sockets::tcp_holder};

/// The listening socket.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpServer {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// Says why the address cannot be used, and what to do.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| bind_error(address, &error))?;
        listener
            .set_nonblocking(true)
            .context("make the HTTP socket non-blocking")?;
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the result is dropped. `names` are further allowed values of `Host`, as in `manager.http_names`.
    ///
    /// # Errors
    ///
    /// Says why the thread cannot be started.
    pub fn start(self, manager: ManagerHandle, names: &[String]) -> Result<RuntimeThread> {
        let recorder = Recorder::default();
        let names = AllowedHosts::new(self.address.ip(), names);
        let app = router(manager.clone(), recorder.clone(), names);
        RuntimeThread::start("http", "HTTP server", move || async move {
            tokio::select! {
                () = connections::serve(self.listener, app) => {}
                () = recorder.record(manager) => {}
            }
        })
    }
}

fn bind_error(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": {}; stop it, or choose another address with --http-listen, or none with --http-listen \"\"",
            tcp_holder(address).in_use()
        ),
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

fn router(manager: ManagerHandle, recorder: Recorder, names: AllowedHosts) -> Router {
    let shared = HttpState {
        manager,
        recorder,
        listeners: Arc::new(Semaphore::new(events::MAX_LISTENERS)),
    };
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .nest("/api/v1", api::router())
        .route("/api/v1/openapi.json", get(openapi::document))
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
