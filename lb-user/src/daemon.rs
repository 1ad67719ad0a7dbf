//! Starts and stops the manager, the control socket and the HTTP server, and handles signals.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::{
    abort_on_drop::AbortOnDrop,
    config::Config,
    control, http,
    manager::{self, ManagerHandle, ReadConfig},
    systemd,
};

/// Runs a manager until SIGTERM or SIGINT. `config_file` is the file that `config` comes from, and
/// `read_config` reads it again for a reload.
///
/// # Errors
///
/// Says what cannot be opened, loaded or attached. After an error, no new program stays attached.
pub async fn run(
    config: Config,
    config_file: Option<PathBuf>,
    read_config: ReadConfig,
) -> Result<()> {
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let prepared = manager::prepare(config, config_file, read_config).await?;
    // All sockets are opened before anything is attached.
    let settings = prepared.config().manager.clone();
    let control = control::ControlServer::bind(&settings.control_socket).await?;
    let http = settings
        .http_listen
        .map(http::HttpServer::bind)
        .transpose()?;
    let mut terminate = catch(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = catch(SignalKind::interrupt(), "SIGINT")?;
    let hangup = catch(SignalKind::hangup(), "SIGHUP")?;

    let (manager, handle) = prepared.start().await?;
    let _http = match http {
        Some(server) => {
            let address = server.address();
            let running = server.start(handle.clone(), &settings.http_names)?;
            info!("web page, metrics and API at http://{address}/");
            Some(running)
        }
        None => None,
    };
    let _reload = AbortOnDrop(tokio::spawn(reload_on_hangup(hangup, handle.clone())));
    let _control = AbortOnDrop(tokio::spawn(control.serve(handle)));
    systemd::ready();
    manager
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            systemd::stopping();
        })
        .await
}

fn catch(kind: SignalKind, name: &str) -> Result<Signal> {
    signal(kind).with_context(|| format!("catch {name}"))
}

async fn reload_on_hangup(mut hangup: Signal, manager: ManagerHandle) {
    while hangup.recv().await.is_some() {
        // The manager's task has logged the result.
        _ = manager.reload().await;
    }
}
