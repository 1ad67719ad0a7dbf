//! Creates a key and writes its file.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result, anyhow};
use zeroize::Zeroizing;

use super::{
    KeyId, SECRET_BYTES,
    file::{PEER_MARK, WORKER_MARK},
    write_hex,
};

/// Writes a new key of `worker` to a new file that only this user can read; returns the key's id.
///
/// # Errors
///
/// Says why the file cannot be created. An existing file stays as it is.
pub fn write_new(path: &Path, worker: &str) -> Result<KeyId> {
    write(path, &format!("{WORKER_MARK} {worker}"))
}

/// Writes a new key of managers to a new file that only this user can read; returns the key's id.
///
/// # Errors
///
/// Says why the file cannot be created. An existing file stays as it is.
pub fn write_new_peer(path: &Path) -> Result<KeyId> {
    write(path, PEER_MARK)
}

fn write(path: &Path, words: &str) -> Result<KeyId> {
    let id = KeyId(getrandom::u32().context("draw a key's id")?);
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(secret.as_mut()).context("draw a secret")?;
    // Enough capacity at once, because a reallocation would leave copies of the secret.
    let mut line = Zeroizing::new(Vec::with_capacity(256));
    line.extend_from_slice(format!("{words} {id} ").as_bytes());
    write_hex(secret.as_ref(), &mut line);
    line.push(b'\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::AlreadyExists => {
                    "; memlb overwrites no file: choose another with --output"
                }
                ErrorKind::NotFound => {
                    "; create its directory first, or choose another with --output"
                }
                _ => "",
            };
            anyhow!("create the key file {}: {error}{remedy}", path.display())
        })?;
    let written = file.write_all(&line).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // An incomplete file would be in the way of the next attempt.
        let removed = fs::remove_file(path);
        let error = anyhow!(error).context(format!("write the key file {}", path.display()));
        return Err(match removed {
            Ok(()) => error,
            Err(_) => error.context("remove the incomplete file"),
        });
    }
    Ok(id)
}
