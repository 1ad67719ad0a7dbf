//! QEMU's pre-copy moves a running virtual machine.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::wait_for;
use serde_json::{Value, json};

use super::{
    qmp::Qmp,
    scenario::Silence,
    testbed::{MoveStats, Network},
};

const MIGRATING: Duration = Duration::from_secs(60);

/// Moves the machine of the QEMU `source` to the one that waits at the [`channel`] in `directory`.
pub fn migrate(
    source: &mut Qmp,
    directory: &Path,
    network: &Network,
    silence: Silence,
) -> Result<MoveStats> {
    network.announce(silence)?;
    let pauses = silence != Silence::Short;
    let capability = json!([{ "capability": "pause-before-switchover", "state": pauses }]);
    source.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": capability }),
    )?;
    source.execute("migrate", json!({ "uri": channel(directory) }))?;
    if pauses {
        wait_for_migration(source, "pre-switchover")?;
        // The machine is stopped.
        thread::sleep(silence.duration());
        let state = json!({ "state": "pre-switchover" });
        source.execute("migrate-continue", state)?;
    }
    let migration = wait_for_migration(source, "completed")?;
    network.announce_end(silence)?;
    Ok(MoveStats {
        still_ms: migration["downtime"]
            .as_f64()
            .context("QEMU reports no downtime")?,
        bytes: migration["ram"]["transferred"]
            .as_u64()
            .context("QEMU reports no moved bytes")?,
    })
}

fn wait_for_migration(source: &mut Qmp, status: &str) -> Result<Value> {
    wait_for(
        MIGRATING,
        &format!("the migration to be {status}"),
        || match source.execute("query-migrate", json!({})) {
            Ok(migration) if migration["status"] == status => Some(Ok(migration)),
            Ok(migration) if migration["status"] == "failed" => {
                Some(Err(anyhow::anyhow!("the migration failed: {migration}")))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        },
    )?
}

/// The socket at which the destination's QEMU listens.
pub fn channel(directory: &Path) -> String {
    format!("unix:{}", directory.join("channel").display())
}
