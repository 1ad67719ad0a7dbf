//! `memlb import`: the configuration of nginx, HAProxy or keepalived, as a `memlb.toml`.
//!
//! The three formats share words, quotes and comments (`statement`). Each is converted to a `service::Import`, from which
//! `document` writes the file. Every comment and note names its line; no existing parser keeps the lines of all three.

mod document;
mod haproxy;
mod keepalived;
mod nginx;
mod service;
pub(crate) mod statement;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use thiserror::Error;

use crate::{
    addresses::Addresses,
    encoding::{self, NotUtf8},
};
use statement::{Location, SyntaxError};

/// The program whose configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Nginx,
    Haproxy,
    Keepalived,
}

/// Why the import failed.
#[derive(Debug, Error)]
pub enum ImportError {
    #[error("read {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: {problem}; {}", .path.display(), .problem.remedy(&.path.display().to_string()))]
    NotText { path: PathBuf, problem: NotUtf8 },
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("{0}: more than {1} files are included; a file probably includes itself")]
    TooManyIncludes(Location, usize),
    #[error(
        "{}: no upstream or server (nginx), frontend or listen (HAProxy), or virtual_server (keepalived) found; \
         name the program with --from", .0.display()
    )]
    UnknownFormat(PathBuf),
    #[error("{}: no service can be imported:\n  {}", .path.display(), reasons(.notes))]
    NoService { path: PathBuf, notes: Vec<String> },
}

/// Why a file has no service that memlb supports.
fn reasons(notes: &[String]) -> String {
    match notes {
        [] => "it has no server with proxy_pass (nginx), no frontend or listen with servers (HAProxy), and no \
               virtual_server (keepalived); name the file that has it"
            .to_owned(),
        notes => notes.join("\n  "),
    }
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
    let text = read(path)?;
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

/// Returns the name of a file in messages, relative to the directory of the main file.
fn name_in(directory: &Path, path: &Path) -> Arc<str> {
    let name = path.strip_prefix(directory).unwrap_or(path);
    Arc::from(name.display().to_string())
}

fn directory_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Returns the files that match a path, sorted by name; the last part of the path may have one `*`.
pub(crate) fn matching(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((first, last)) = name.split_once('*') else {
        return vec![path.to_owned()];
    };
    let entries = fs::read_dir(directory_of(path))
        .into_iter()
        .flatten()
        .flatten();
    let fits = |it: &fs::DirEntry| {
        let name = it.file_name();
        let name = name.to_string_lossy();
        name.len() >= first.len() + last.len() && name.starts_with(first) && name.ends_with(last)
    };
    let mut files: Vec<PathBuf> = entries.filter(fits).map(|it| it.path()).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<String, ImportError> {
    let bytes = encoding::read(path).map_err(|error| ImportError::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let text = encoding::check(&bytes).map_err(|problem| ImportError::NotText {
        path: path.to_owned(),
        problem,
    })?;
    Ok(text.to_owned())
}
