//! Why a configuration cannot be imported.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::statement::{Location, SyntaxError};
use crate::encoding::NotUtf8;

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
