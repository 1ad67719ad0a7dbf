//! The files of an imported configuration: their names, and those that a pattern includes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::error::ImportError;
use crate::encoding;

/// Returns the name of a file in messages, relative to the directory of the main file.
pub fn name_in(directory: &Path, path: &Path) -> Arc<str> {
    let name = path.strip_prefix(directory).unwrap_or(path);
    Arc::from(name.display().to_string())
}

pub fn directory_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Returns the files that match a path, sorted by name; the last part of the path may have one `*`.
pub fn matching(path: &Path) -> Vec<PathBuf> {
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

pub fn read(path: &Path) -> Result<String, ImportError> {
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
