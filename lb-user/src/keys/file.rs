//! Key files: one line `memlb-key-1 WORKER ID SECRET` for each key. Only the owner of a file can read it.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{fcntl::OFlag, unistd::geteuid};
use zeroize::Zeroizing;

use super::{Key, KeyId, KeyRing, SECRET_BYTES, parse_hex};
use crate::{
    encoding::{self, BYTE_ORDER_MARK},
    worker_name::check_name,
};

/// The first word of the line of a worker's key: its kind, and the version of its format.
pub(super) const WORKER_MARK: &str = "memlb-key-1";

/// The first word of the line of a peer's key. It differs from that of a worker's key, so that neither is accepted as
/// the other.
pub(super) const PEER_MARK: &str = "memlb-peer-key-1";

/// The extension of files in a directory of keys.
const EXTENSION: &str = "key";

/// The largest key file, more than a thousand keys need.
const MAX_BYTES: u64 = 1 << 20;

/// The variable with the directory of the unit's credentials (`LoadCredential=`).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The directory where systemd keeps the credentials of services.
const SERVICE_CREDENTIALS: &str = "/run/credentials";

/// Reads an agent's key file, which has the one key of `worker`.
///
/// # Errors
///
/// Says why the file cannot be trusted or read, or that it has the key of another worker.
pub fn read_key(path: &Path, worker: &str) -> Result<Key> {
    let mut keys = KeyRing::default();
    read_into(&mut keys, path)?;
    let mut all = keys.iter();
    match (all.next(), all.next()) {
        (Some(key), None) if key.worker() == worker => Ok(key.clone()),
        (Some(key), None) => bail!(
            "{} has a key of {}, not of {worker}: give the right file, or --name {}",
            path.display(),
            key.worker(),
            key.worker()
        ),
        _ => bail!(
            "{} has {}: an agent signs with one; only the manager uses several",
            path.display(),
            lb_core::counted(keys.len(), "key")
        ),
    }
}

/// Reads a manager's keys: a file with any number of keys, or a directory of files ending in `.key`.
/// [`KeyRing::warning`] names the other files in the directory.
///
/// # Errors
///
/// Says which file cannot be trusted or read, and why.
pub fn read_keys(path: &Path) -> Result<KeyRing> {
    let mut keys = KeyRing::default();
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "read the keys at {}: {error}; create the directory, or set heartbeats.keys",
            path.display()
        ),
        metadata => metadata.with_context(|| format!("read the keys at {}", path.display()))?,
    };
    if !metadata.is_dir() {
        read_into(&mut keys, path)?;
        return Ok(keys);
    }
    // A user who can write a file there can create a worker.
    let mode = metadata.mode();
    let real = fs::canonicalize(path).unwrap_or_default();
    ensure!(
        is_trusted(metadata.uid(), &real) && mode & 0o022 == 0,
        "{}: others may write to this directory of keys (owner {}, mode {:04o}): chown root and \
         chmod 700 it",
        path.display(),
        metadata.uid(),
        mode & 0o7777
    );
    let (files, others) = list(path)?;
    for file in files {
        read_into(&mut keys, &file)?;
    }
    keys.set_skipped(others);
    Ok(keys)
}

/// Returns the key files in a directory, and the names of everything else in it: backups, lock files and metadata of
/// other programs, directories. Both are sorted.
fn list(directory: &Path) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let context = || format!("list the keys in {}", directory.display());
    let (mut keys, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_hidden = name.starts_with('.');
        let is_key = path
            .extension()
            .is_some_and(|extension| extension == EXTENSION);
        match (is_key && !is_hidden, path.is_dir()) {
            (true, false) => keys.push(path),
            // Kubernetes keeps the versions of a mounted secret there.
            (_, true) if is_hidden => {}
            _ => others.push(name.into_owned()),
        }
    }
    keys.sort();
    others.sort();
    Ok((keys, others))
}

fn read_into(keys: &mut KeyRing, path: &Path) -> Result<()> {
    read_lines(path, "memlb keygen --name WORKER", |line, location| {
        keys.add(parse(line).with_context(|| location.to_owned())?, location)
    })
}

/// Reads a key file, and passes each line with its location to `each`. `keygen` is the command that creates such a
/// file.
pub(super) fn read_lines(
    path: &Path,
    keygen: &str,
    mut each: impl FnMut(&str, &str) -> Result<()>,
) -> Result<()> {
    let bytes = read_private(path)?;
    let text = encoding::check(&bytes).map_err(|found| {
        let shown = path.display().to_string();
        // The bytes are a secret, so that the error does not quote them.
        anyhow!(
            "read the key file {shown}: it is not encoded in UTF-8: {}",
            found.remedy(&shown)
        )
    })?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut lines = 0;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        lines += 1;
        let location = format!("{}, line {}", path.display(), index + 1);
        each(line, &location)?;
    }
    ensure!(
        lines > 0,
        "{} has no key: `{keygen}` creates one",
        path.display()
    );
    Ok(())
}

/// Parses one line. It is a secret, so that errors do not quote it.
fn parse(line: &str) -> Result<Key> {
    let mut words = line.split_whitespace();
    let parts = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    );
    let (Some(WORKER_MARK), Some(worker), Some(id), Some(digits), None) = parts else {
        ensure!(
            parts.0 != Some(PEER_MARK),
            "this is a key of managers, not of a worker: [[peer]] names its file, and no worker has it"
        );
        bail!(
            "not a key: expected \"{WORKER_MARK} WORKER ID SECRET\" as `memlb keygen` writes it, with the \
             secret in 64 hexadecimal digits"
        );
    };
    if let Err(problem) = check_name(worker) {
        bail!("the worker's name is not valid: {problem}");
    }
    let (id, secret) = parse_secret(id, digits)?;
    Ok(Key::new(worker.to_owned(), id, &secret))
}

/// Parses the id and the secret of a key.
pub(super) fn parse_secret(
    id: &str,
    digits: &str,
) -> Result<(KeyId, Zeroizing<[u8; SECRET_BYTES]>)> {
    let id = KeyId::parse(id.as_bytes())
        .context("the key's id is not 8 hexadecimal digits in lower case")?;
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    ensure!(
        parse_hex(digits.as_bytes(), secret.as_mut()),
        "the secret is not 64 hexadecimal digits in lower case"
    );
    ensure!(
        secret.iter().any(|byte| *byte != secret[0]),
        "the secret is one repeated byte: `memlb keygen` draws a random one"
    );
    Ok((id, secret))
}

/// Reads a file that only its owner can read or write, who is root or this user.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // The file may be a pipe: opening it must not wait for the other end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .with_context(|| format!("open the key file {}", path.display()))?;
    let length = check_permissions(path, &file)?;
    // Enough capacity at once, because a reallocation would leave copies of the secret.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 64));
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read the key file {}", path.display()))?;
    Ok(bytes)
}

/// Checks the permissions of the open file, not of the file at `path`, which may have been replaced meanwhile. Returns
/// its length.
fn check_permissions(path: &Path, file: &File) -> Result<usize> {
    let shown = path.display();
    let metadata = file
        .metadata()
        .with_context(|| format!("examine the key file {shown}"))?;
    ensure!(metadata.is_file(), "{shown} is not a regular file");
    // The path of the open file, without links.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let real = fs::read_link(link).unwrap_or_default();
    ensure!(
        is_trusted(metadata.uid(), &real),
        "{shown} belongs to user {}: chown it to the user that reads it, or to root",
        metadata.uid()
    );
    // systemd grants the unit's user access by an access control list, whose mask appears as the group's mode.
    let group_may_read = if is_credential(path) { 0o040 } else { 0 };
    let mode = metadata.mode() & 0o777;
    ensure!(
        mode & 0o077 & !group_may_read == 0,
        "{shown} can be used by others than its owner (mode {mode:04o}): chmod 600 it, and create a new \
         key if another user may have read it"
    );
    ensure!(
        metadata.len() < MAX_BYTES,
        "{shown} is too large for a key file"
    );
    Ok(usize::try_from(metadata.len())?)
}

/// Whether the owner of a file or directory may be trusted. `real` is its path without links.
fn is_trusted(owner: u32, real: &Path) -> bool {
    owner == 0 || owner == geteuid().as_raw() || is_service_credential(real)
}

/// Whether a file is a service's credential. The service's user owns it, but only root can write to the directory
/// (systemd.exec(5)).
fn is_service_credential(real: &Path) -> bool {
    let is_protected = || {
        fs::metadata(SERVICE_CREDENTIALS).is_ok_and(|it| it.uid() == 0 && it.mode() & 0o022 == 0)
    };
    real.starts_with(SERVICE_CREDENTIALS) && is_protected()
}

fn is_credential(path: &Path) -> bool {
    credentials().is_some_and(|directory| path.starts_with(directory))
}

/// Returns the file of the credential `name`, if systemd has passed one.
pub fn credential(name: &str) -> Option<PathBuf> {
    let file = credentials()?.join(name);
    file.exists().then_some(file)
}

fn credentials() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os(CREDENTIALS_VARIABLE)?);
    directory.is_absolute().then_some(directory)
}
