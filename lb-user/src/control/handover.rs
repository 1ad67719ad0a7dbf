//! `memlb handover`: lowers this manager's priority when its peers know all connections, and raises it again.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::sleep};

use super::request_error::RequestError;
use crate::{
    addresses,
    config::Config,
    handover::{HandedOver, TrackFile},
    history::now_ms,
    manager::ManagerHandle,
    peer_report::not_received,
};
use lb_core::{Event, milliseconds};

/// How long keepalived may take to move the addresses.
const MOVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a condition is checked while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The result of a handover, or of its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverReply {
    /// Whether this manager has a lower priority now.
    pub handed_over: bool,
    /// The time until every peer had acknowledged all records; with `undo`, until all connections of the peers were
    /// known here.
    pub waited_ms: u64,
    /// The connections that a peer or this manager lacks, one sentence for each peer; only with `force`.
    pub missing: Vec<String>,
    /// Addresses of services and `nat_sources` that have left this machine.
    pub moved: Vec<IpAddr>,
    pub moved_ms: u64,
    /// Addresses that keepalived has not moved.
    pub still_here: Vec<IpAddr>,
    pub track_file: String,
}

/// Waits until the peers know all connections, lowers the priority, and waits until the addresses have left.
pub(super) async fn hand_over(
    wait: Duration,
    force: bool,
    user: String,
    manager: &ManagerHandle,
) -> Result<HandoverReply, RequestError> {
    let (config, file) = configured(manager).await?;
    let begun = Instant::now();
    let missing = match manager.peers_acknowledged(wait).await {
        _ if manager.peers().is_empty() => vec!["the peers are not started yet".to_owned()],
        Ok(()) => Vec::new(),
        Err(missing) => missing,
    };
    refuse(&missing, force, "the peers would lose connections")?;
    let waited_ms = milliseconds(begun.elapsed());
    let before = addresses_here(&config).await?;
    let handed_over = HandedOver {
        by: Some(user.clone()),
        at_ms: now_ms(),
    };
    write(&file, Some(handed_over)).await?;
    let event = Event::HandedOver {
        by: user,
        forced: !missing.is_empty(),
        waited_ms,
    };
    manager.emit(event).await?;
    let written = Instant::now();
    let still_here = wait_until_moved(&config, &before).await?;
    Ok(HandoverReply {
        handed_over: true,
        waited_ms,
        missing,
        moved: before.difference(&still_here).copied().collect(),
        moved_ms: milliseconds(written.elapsed()),
        still_here: still_here.into_iter().collect(),
        track_file: path_of(&file),
    })
}

/// Waits until this manager knows all connections of its peers, and then restores its priority.
pub(super) async fn undo(
    wait: Duration,
    force: bool,
    user: String,
    manager: &ManagerHandle,
) -> Result<HandoverReply, RequestError> {
    let (_, file) = configured(manager).await?;
    let begun = Instant::now();
    let missing = loop {
        let missing: Vec<String> = manager.peers().iter().filter_map(not_received).collect();
        if missing.is_empty() || begun.elapsed() >= wait {
            break missing;
        }
        sleep(POLL_INTERVAL).await;
    };
    refuse(&missing, force, "this manager would lose connections")?;
    let was = file.handed_over();
    write(&file, None).await?;
    if was.is_some() {
        manager.emit(Event::HandoverUndone { by: user }).await?;
    }
    Ok(HandoverReply {
        waited_ms: milliseconds(begun.elapsed()),
        missing,
        track_file: path_of(&file),
        ..HandoverReply::default()
    })
}

async fn configured(manager: &ManagerHandle) -> Result<(Config, TrackFile), RequestError> {
    let config = manager.configuration().await;
    match config.peers.is_empty() {
        false => Ok((config, manager.track_file().clone())),
        true => Err(RequestError::Usage(anyhow!(
            "no peer is configured, so there is no manager to hand over to; see [[peer]] in the configuration"
        ))),
    }
}

fn refuse(missing: &[String], force: bool, outcome: &str) -> Result<(), RequestError> {
    match missing.is_empty() || force {
        true => Ok(()),
        false => Err(RequestError::RunTime(anyhow!(
            "{outcome}: {}; nothing was changed (--force ignores this)",
            missing.join("; ")
        ))),
    }
}

async fn write(file: &TrackFile, handed_over: Option<HandedOver>) -> Result<()> {
    let file = file.clone();
    let written = spawn_blocking(move || file.set(handed_over)).await;
    written.context("write the track file")?
}

fn path_of(file: &TrackFile) -> String {
    let path = file.path().map(|it| it.display().to_string());
    path.unwrap_or_default()
}

/// Returns the addresses of services and `nat_sources` that this machine has now.
async fn addresses_here(config: &Config) -> Result<BTreeSet<IpAddr>> {
    let own = spawn_blocking(addresses::own).await;
    let own = own.context("list this machine's addresses")??;
    let services = config.services.iter().map(|it| it.address.ip());
    let addresses = services.chain(config.manager.nat_sources.iter().copied());
    Ok(addresses
        .filter(|it| own.interface_of(*it).is_some())
        .collect())
}

/// Waits until no address is left here, for at most [`MOVE_TIMEOUT`]; returns the ones that are.
async fn wait_until_moved(config: &Config, before: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>> {
    let begun = Instant::now();
    loop {
        let still_here = match before.is_empty() {
            true => BTreeSet::new(),
            false => addresses_here(config).await?,
        };
        if still_here.is_empty() || begun.elapsed() >= MOVE_TIMEOUT {
            return Ok(still_here);
        }
        sleep(POLL_INTERVAL).await;
    }
}
