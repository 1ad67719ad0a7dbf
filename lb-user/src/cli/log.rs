//! The log: as text for people, as JSON, or to systemd's journal with severity and fields.

use std::{io::IsTerminal, os::unix::fs::MetadataExt, path::Path};

use clap::ValueEnum;
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::format::debug_fn,
    layer::{Layered, SubscriberExt},
    registry::Registry,
    util::SubscriberInitExt,
};

use super::journal::{EVENT_FIELD, Journal, SOCKET};

/// The format of the log. [`LogFormat::Auto`] is the journal's protocol if systemd's journal receives the log, else
/// text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

/// Sends the log to standard output, or to the journal that reads it. `RUST_LOG` sets the level.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let journal = match format {
        LogFormat::Auto if is_journal() => Journal::connect(Path::new(SOCKET)).ok(),
        _ => None,
    };
    let layer = match (format, journal) {
        (_, Some(journal)) => journal.boxed(),
        (LogFormat::Json, None) => lines().json().flatten_event(true).boxed(),
        (LogFormat::Auto | LogFormat::Text, None) => lines()
            .with_ansi(std::io::stdout().is_terminal())
            .fmt_fields(debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{value:?}"),
                // The message has the same content.
                EVENT_FIELD => Ok(()),
                name => write!(writer, " {name}={value:?}"),
            }))
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .init();
}

fn lines() -> tracing_subscriber::fmt::Layer<Layered<EnvFilter, Registry>> {
    tracing_subscriber::fmt::layer()
        .with_target(false)
        // A reader such as `head` that closes the log early is not an error.
        .log_internal_errors(false)
        .with_ansi(false)
}

/// Whether standard output is the journal's. systemd passes its device and inode, but a child with another standard
/// output inherits the variable.
fn is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let output = std::fs::metadata("/proc/self/fd/1");
    output.is_ok_and(|it| journal == format!("{}:{}", it.dev(), it.ino()))
}
