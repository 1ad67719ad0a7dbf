//! Every rule that a configuration must keep; all that are broken are reported together.

mod auto_join;
mod heartbeats;
mod limits;
mod manager;
mod reader;
mod services;

use std::time::Duration;

use super::error::{ConfigError, ProblemKind};
use super::file::{FailoverTable, File};
use super::overrides::Overrides;
use super::values::{PortRange, show_duration};
use super::{Config, Failover};
use reader::{Reader, Setting};

/// Turns what was written into what holds.
pub(super) fn check(
    file: File,
    text: &str,
    name: &str,
    overrides: &Overrides,
    kernel_ports: Option<PortRange>,
) -> Result<Config, ConfigError> {
    let mut reader = Reader::new(text, name);
    let manager = manager::check(&mut reader, file.manager, overrides);
    let heartbeats = heartbeats::check(&mut reader, file.heartbeats, manager.legacy_heartbeats);
    let failover = failover(&mut reader, file.failover, overrides);
    let (limits, room) = limits::check(&mut reader, file.limits, kernel_ports);
    let services = services::check(
        &mut reader,
        file.services,
        overrides,
        &room,
        &manager,
        heartbeats.authentication,
    );
    reader.finish(Config {
        manager,
        heartbeats,
        failover,
        limits,
        services,
    })
}

fn failover(reader: &mut Reader<'_>, table: FailoverTable, overrides: &Overrides) -> Failover {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let default = Failover::default();
    let interval = reader.duration(
        "failover.heartbeat_interval",
        Setting::file(table.heartbeat_interval),
        default.heartbeat_interval,
        LONGEST,
    );
    let down_after = reader.duration(
        "failover.down_after",
        Setting::flag_or_file("--down-after", &overrides.down_after, table.down_after),
        default.down_after,
        LONGEST,
    );
    let up_after = reader.integer(
        "failover.up_after",
        table.up_after,
        default.up_after,
        1..=1000,
    );

    // Two lost datagrams in a row must not look like a death.
    if let (Some(beat), Some(down)) = (interval.good(), down_after.good())
        && down < beat.saturating_mul(3)
    {
        reader.refuse(
            &down_after.place,
            ProblemKind::DownAfterTooShort,
            format!(
                "{} is shorter than three heartbeat intervals of {}",
                show_duration(down),
                show_duration(beat)
            ),
            format!("at least {}", show_duration(beat.saturating_mul(3))),
            "raise down_after, or lower heartbeat_interval here and --interval of the agents",
        );
    }
    Failover {
        heartbeat_interval: interval.value,
        down_after: down_after.value,
        up_after: up_after.value,
    }
}
