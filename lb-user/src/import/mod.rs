//! `memlb import`: the configuration of nginx, HAProxy or keepalived, as a `memlb.toml`.
//!
//! The three formats share words, quotes and comments (`statement`). Each is converted to a `service::Import`, from
//! which `document` writes the file. Every comment and note names its line; no existing parser keeps the lines of all
//! three.

mod document;
mod error;
pub(crate) mod files;
mod haproxy;
mod keepalived;
mod nginx;
mod service;
pub(crate) mod statement;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::Path};

use serde::Serialize;

pub use self::error::ImportError;
use crate::addresses::Addresses;

/// The program whose configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Nginx,
    Haproxy,
    Keepalived,
}

/// The options of the command line.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `None`: the content decides.
    pub format: Option<Format>,
    /// The address of services that listen at every address.
    pub address: Option<IpAddr>,
    /// The interface that clients use.
    pub interface: Option<String>,
}

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The text of a `memlb.toml`.
    pub toml: String,
    pub services: usize,
    /// The lines without an equal in memlb, and what to do about them.
    pub notes: Vec<String>,
    /// The commands to run on the workers.
    pub agents: Vec<String>,
}

/// Reads a configuration and translates it for a machine that has the addresses `machine`.
///
/// # Errors
///
/// When the file cannot be read or parsed, or has no service that memlb supports.
pub fn import(
    path: &Path,
    options: &Options,
    machine: &Addresses,
) -> Result<Imported, ImportError> {
    let text = files::read(path)?;
    let format = options
        .format
        .or_else(|| detect_format(&text))
        .ok_or_else(|| ImportError::UnknownFormat(path.to_owned()))?;
    let mut import = match format {
        Format::Nginx => nginx::import(&text, path)?,
        Format::Haproxy => haproxy::import(&text, path)?,
        Format::Keepalived => keepalived::import(&text, path)?,
    };
    import.resolve(machine, options.address);
    let notes = document::notes(&import);
    if import.services.is_empty() {
        return Err(ImportError::NoService {
            path: path.to_owned(),
            notes,
        });
    }
    let source = path.display().to_string();
    Ok(Imported {
        toml: document::write(&import, &source, machine, options.interface.as_deref()),
        services: import.services.len(),
        notes,
        agents: document::agents(&import),
    })
}

/// Detects the program by the first words of the lines.
fn detect_format(text: &str) -> Option<Format> {
    let begins_with = |words: &[&str]| {
        let mut first_words = text
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        first_words.any(|word| words.contains(&word))
    };
    if begins_with(&["virtual_server", "vrrp_instance", "global_defs"]) {
        Some(Format::Keepalived)
    } else if begins_with(&["frontend", "backend", "listen", "defaults"])
        && !text.contains("proxy_pass")
    {
        Some(Format::Haproxy)
    } else if begins_with(&[
        "http", "http{", "stream", "stream{", "upstream", "server", "server{",
    ]) {
        Some(Format::Nginx)
    } else {
        None
    }
}
