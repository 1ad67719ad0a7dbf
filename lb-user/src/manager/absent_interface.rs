//! A service whose interface does not exist yet waits for it, instead of being restarted every second.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::{datapath::Netlink, systemd};

/// In the service's runtime directory: a former start failed for want of an interface.
const MARKER: &str = "interface-absent";

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The longest pause between two lines of the log about the same interface.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// Waits until the interfaces exist, if systemd runs this service and restarted it for want of one. The first start
/// fails at once, so that `systemctl start` reports a wrong name; a manager started by hand always does.
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
        return forget(&marker);
    };
    if !marker.exists() {
        fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))?;
        return Err(error);
    }
    let mut pause = POLL_INTERVAL;
    let mut next_line = Instant::now();
    while let Err(error) = netlink.interfaces(names).await {
        let text = format!("{error:#}");
        if Instant::now() >= next_line {
            warn!("{text}; waiting for it, checked every second");
            next_line = Instant::now() + pause;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        systemd::waiting(&text);
        sleep(POLL_INTERVAL).await;
    }
    info!("all interfaces exist now: {}", names.join(", "));
    forget(&marker)
}

fn forget(marker: &Path) -> Result<()> {
    match marker.exists() {
        true => fs::remove_file(marker).with_context(|| format!("remove {}", marker.display())),
        false => Ok(()),
    }
}
