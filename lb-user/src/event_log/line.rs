//! A line of the event log.

use std::time::SystemTime;

use lb_core::Event;
use serde::Serialize;

#[derive(Serialize)]
struct LogLine<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// Encodes an event with the present time.
pub(super) fn encode(event: &Event) -> serde_json::Result<Vec<u8>> {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut line = serde_json::to_vec(&LogLine { time, event })?;
    line.push(b'\n');
    Ok(line)
}
