//! Waits for an interface that does not exist yet, so that systemd does not restart the service every second.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{datapath::Netlink, systemd};

/// The file in the service's runtime directory that says that the last start failed because an interface was missing.
const MARKER: &str = "interface-absent";

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The longest pause between two log lines about a missing interface.
const MAX_LOG_PAUSE: Duration = Duration::from_secs(3600);

/// Waits until the interfaces exist, if systemd restarted the service because one was missing. The first start fails at
/// once, so that `systemctl start` reports a wrong name. A manager that is started by hand never waits.
///
/// # Errors
///
/// Says which interface is missing at a first start.
pub(super) async fn wait_for_interfaces(netlink: &mut Netlink, names: &[String]) -> Result<()> {
    let Some(directory) = systemd::runtime_directory() else {
        return Ok(());
    };
    let marker = directory.join(MARKER);
    let Err(error) = netlink.interfaces(names).await else {
        return remove(&marker);
    };
    if !marker.exists() {
        fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))?;
        return Err(error);
    }
    let mut pause = POLL_INTERVAL;
    let mut next_log = Instant::now();
    while let Err(error) = netlink.interfaces(names).await {
        let text = format!("{error:#}");
        if Instant::now() >= next_log {
            warn!("{text}; waiting for it, checked every second");
            next_log = Instant::now() + pause;
            pause = (pause * 2).min(MAX_LOG_PAUSE);
        }
        systemd::waiting(&text);
        sleep(POLL_INTERVAL).await;
    }
    info!("all interfaces exist now: {}", names.join(", "));
    remove(&marker)
}

fn remove(marker: &Path) -> Result<()> {
    match marker.exists() {
        true => fs::remove_file(marker).with_context(|| format!("remove {}", marker.display())),
        false => Ok(()),
    }
}
