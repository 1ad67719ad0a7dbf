//! QEMU's pre-copy: a virtual machine moves while it runs.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memlb_tests::wait_for;
use serde_json::{Value, json};

use super::{
    guests::{Guests, Qemu},
    scenario::Silence,
    scene::Moved,
};

const MIGRATING: Duration = Duration::from_secs(60);

/// Moves the machine on the first host to the QEMU on the second one that waits for it.
pub fn migrate(guests: &mut Guests, silence: Silence) -> Result<Moved> {
    let channel = channel(guests.directory());
    guests.system.announce(silence)?;
    let pauses = silence != Silence::Short;
    let capability = json!([{ "capability": "pause-before-switchover", "state": pauses }]);
    let [source, _] = &mut guests.qemus;
    source.qmp.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": capability }),
    )?;
    source.qmp.execute("migrate", json!({ "uri": channel }))?;
    if pauses {
        wait_for_migration(source, "pre-switchover")?;
        // The machine stands still already.
        let still = Instant::now();
        thread::sleep(silence.duration().saturating_sub(still.elapsed()));
        let state = json!({ "state": "pre-switchover" });
        source.qmp.execute("migrate-continue", state)?;
    }
    let migration = wait_for_migration(source, "completed")?;
    guests.system.announce_end(silence)?;
    Ok(Moved {
        still_ms: migration["downtime"]
            .as_f64()
            .context("QEMU tells the downtime")?,
        bytes: migration["ram"]["transferred"]
            .as_u64()
            .context("QEMU tells what it moved")?,
    })
}

fn wait_for_migration(source: &mut Qemu, status: &str) -> Result<Value> {
    wait_for(
        MIGRATING,
        &format!("the migration to be {status}"),
        || match source.qmp.execute("query-migrate", json!({})) {
            Ok(migration) if migration["status"] == status => Some(Ok(migration)),
            Ok(migration) if migration["status"] == "failed" => {
                Some(Err(anyhow::anyhow!("the migration failed: {migration}")))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        },
    )?
}

/// Where the one QEMU listens and the other one connects.
pub fn channel(directory: &Path) -> String {
    format!("unix:{}", directory.join("channel").display())
}
