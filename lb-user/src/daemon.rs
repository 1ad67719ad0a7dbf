//! Starts and stops the manager, the control socket and the HTTP server, and handles signals.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use procfs::process::{LimitValue, Process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::{
    abort_on_drop::AbortOnDrop,
    config::Config,
    control, http,
    manager::{self, ManagerHandle, ReadConfig},
    systemd,
};

/// How many files the manager needs at least: maps, programs, links and sockets, and some room for connections.
const MIN_OPEN_FILES: u64 = 256;

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
    raise_limit_of_open_files()?;
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
    let mut terminate = catch_signal(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = catch_signal(SignalKind::interrupt(), "SIGINT")?;
    let hangup = catch_signal(SignalKind::hangup(), "SIGHUP")?;

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

/// Raises the limit of open files if it is too low, as far as the system allows.
fn raise_limit_of_open_files() -> Result<()> {
    let context = || "read and raise the limit of open files";
    // Under systemd the limit is high enough, and the unit forbids the system call that raises it.
    let limits = Process::myself().and_then(|it| it.limits());
    let limits = limits.with_context(context)?.max_open_files;
    let reaches = |limit: LimitValue| match limit {
        LimitValue::Unlimited => true,
        LimitValue::Value(limit) => limit >= MIN_OPEN_FILES,
    };
    if reaches(limits.soft_limit) {
        return Ok(());
    }
    if !reaches(limits.hard_limit) {
        bail!(
            "this process may not open {MIN_OPEN_FILES} files, which the manager needs for its maps, programs and \
             sockets: raise the limit (ulimit -n {MIN_OPEN_FILES}, or LimitNOFILE= in the unit)"
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, MIN_OPEN_FILES, MIN_OPEN_FILES).with_context(context)
}

fn catch_signal(kind: SignalKind, name: &str) -> Result<Signal> {
    signal(kind).with_context(|| format!("catch {name}"))
}

async fn reload_on_hangup(mut hangup: Signal, manager: ManagerHandle) {
    while hangup.recv().await.is_some() {
        // The manager's task has logged the result.
        _ = manager.reload().await;
    }
}
