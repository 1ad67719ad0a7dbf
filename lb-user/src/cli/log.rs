//! The log: for people on a terminal and in files, as JSON for systemd's journal.

use std::{io::IsTerminal, os::unix::fs::MetadataExt};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look; [`Format::Auto`] is JSON where the log goes to systemd's journal, else text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Auto,
    Text,
    Json,
}

/// Sends the log to standard output; `RUST_LOG` says how much of it.
pub fn start(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // A reader that closes the log early, as `head` does, is no error.
        .log_internal_errors(false)
        .with_ansi(std::io::stdout().is_terminal());
    let is_json = match format {
        Format::Auto => is_journal(),
        Format::Text => false,
        Format::Json => true,
    };
    if is_json {
        log.json().flatten_event(true).init();
    } else {
        log.init();
    }
}

/// Whether standard output is the journal's own: systemd passes its device and inode, which a child
/// with another output inherits, too.
fn is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let output = std::fs::metadata("/proc/self/fd/1");
    output.is_ok_and(|it| journal == format!("{}:{}", it.dev(), it.ino()))
}
