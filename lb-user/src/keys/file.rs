//! Key files: one line `memlb-key-1 WORKER ID SECRET` for each key, readable by their owner alone.

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

use super::{Key, KeyId, KeyRing, SECRET_BYTES, hex};
use crate::{
    encoding::{self, BYTE_ORDER_MARK},
    worker_name::check_name,
};

/// The first word of a key's line: what it is, and the version of its form.
pub(super) const MARK: &str = "memlb-key-1";

/// The first word of the line. It differs from that of a worker's key, so that neither stands for the other.
pub(super) const PEER_MARK: &str = "memlb-peer-key-1";

/// What the files in a directory of keys end in.
const ENDING: &str = "key";

/// More than a thousand keys need.
const MOST_BYTES: u64 = 1 << 20;

/// Where systemd puts what a unit's `LoadCredential=` names.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Where systemd keeps the credentials of services.
const SERVICES: &str = "/run/credentials";

/// Reads an agent's key file, which holds the one key of `worker`.
///
/// # Errors
///
/// Says why the file cannot be trusted or read, or whose key it holds instead.
pub fn read_key(path: &Path, worker: &str) -> Result<Key> {
    let mut keys = KeyRing::default();
    read_into(&mut keys, path)?;
    let mut all = keys.iter();
    match (all.next(), all.next()) {
        (Some(key), None) if key.worker() == worker => Ok(key.clone()),
        (Some(key), None) => bail!(
            "{} holds a key of {}, not of {worker}: give the right file, or --name {}",
            path.display(),
            key.worker(),
            key.worker()
        ),
        _ => bail!(
            "{} holds {}: an agent signs with one; only the manager uses several",
            path.display(),
            lb_core::counted(keys.len(), "key")
        ),
    }
}

/// Reads a manager's keys: a file of any number of them, or a directory of files ending in `.key`. Other
/// files in the directory are not read, but named in [`KeyRing::warning`].
///
/// # Errors
///
/// Says which file cannot be trusted or read, and why; no key counts then.
pub fn read_keys(path: &Path) -> Result<KeyRing> {
    let mut keys = KeyRing::default();
    let about = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "read the keys at {}: {error}; make the directory, or set heartbeats.keys",
            path.display()
        ),
        about => about.with_context(|| format!("read the keys at {}", path.display()))?,
    };
    if !about.is_dir() {
        read_into(&mut keys, path)?;
        return Ok(keys);
    }
    // A user who may put a file there can create a worker.
    let mode = about.mode();
    let real = fs::canonicalize(path).unwrap_or_default();
    ensure!(
        ours(about.uid(), &real) && mode & 0o022 == 0,
        "{}: others may write to this directory of keys (owner {}, mode {:04o}): chown root and \
         chmod 700 it",
        path.display(),
        about.uid(),
        mode & 0o7777
    );
    let Files {
        keys: files,
        others,
    } = files(path)?;
    for file in files {
        read_into(&mut keys, &file)?;
    }
    keys.skip(others);
    Ok(keys)
}

/// What lies in a directory of keys, by name.
#[derive(Default)]
struct Files {
    keys: Vec<PathBuf>,
    /// What is not read: backups, lock files and metadata of other programs, directories.
    others: Vec<String>,
}

fn files(directory: &Path) -> Result<Files> {
    let context = || format!("list the keys in {}", directory.display());
    let mut files = Files::default();
    for entry in fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_hidden = name.starts_with('.');
        let is_key = path.extension().is_some_and(|ending| ending == ENDING);
        match (is_key && !is_hidden, path.is_dir()) {
            (true, false) => files.keys.push(path),
            // Where Kubernetes keeps the versions of a mounted secret.
            (_, true) if is_hidden => {}
            _ => files.others.push(name.into_owned()),
        }
    }
    files.keys.sort();
    files.others.sort();
    Ok(files)
}

fn read_into(keys: &mut KeyRing, path: &Path) -> Result<()> {
    let made = "memlb keygen --name WORKER";
    read_lines(path, made, |line, place| {
        keys.add(parse(line).with_context(|| place.to_owned())?, place)
    })
}

/// Reads the lines of a key file that only its owner can read; `made` is the command that makes such a file.
pub(super) fn read_lines(
    path: &Path,
    made: &str,
    mut each: impl FnMut(&str, &str) -> Result<()>,
) -> Result<()> {
    let bytes = read_private(path)?;
    let text = encoding::check(&bytes).map_err(|found| {
        let shown = path.display().to_string();
        // The bytes are a secret, and not quoted.
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
        let place = format!("{}, line {}", path.display(), index + 1);
        each(line, &place)?;
    }
    ensure!(
        lines > 0,
        "{} holds no key: `{made}` writes one",
        path.display()
    );
    Ok(())
}

/// Parses one line. Errors do not quote it: it is a secret.
fn parse(line: &str) -> Result<Key> {
    let mut words = line.split_whitespace();
    let parts = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    );
    let (Some(MARK), Some(worker), Some(id), Some(digits), None) = parts else {
        ensure!(
            parts.0 != Some(PEER_MARK),
            "a key of managers, not of a worker: [[peer]] names its file, and no worker has it"
        );
        bail!(
            "not a key: expected \"{MARK} WORKER ID SECRET\" as `memlb keygen` writes it, with the \
             secret in 64 hexadecimal digits"
        );
    };
    if let Err(problem) = check_name(worker) {
        bail!("the worker's name cannot be one: {problem}");
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
        hex(digits.as_bytes(), secret.as_mut()),
        "the secret is not 64 hexadecimal digits in lower case"
    );
    ensure!(
        secret.iter().any(|byte| *byte != secret[0]),
        "the secret is one byte repeated: `memlb keygen` draws one at random"
    );
    Ok((id, secret))
}

/// Reads a file that only its owner, root or this user, can read or write.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // Without waiting for the other end, should it be a pipe.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .with_context(|| format!("open the key file {}", path.display()))?;
    let length = check_permissions(path, &file)?;
    // Room for all of it at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 64));
    file.take(MOST_BYTES)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read the key file {}", path.display()))?;
    Ok(bytes)
}

/// Checks the open file, which cannot be exchanged meanwhile; returns its length.
fn check_permissions(path: &Path, file: &File) -> Result<usize> {
    let shown = path.display();
    let about = file
        .metadata()
        .with_context(|| format!("look at the key file {shown}"))?;
    ensure!(about.is_file(), "{shown} is not a regular file");
    // Where the open file is, whatever links led there.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let real = fs::read_link(link).unwrap_or_default();
    ensure!(
        ours(about.uid(), &real),
        "{shown} belongs to user {}: chown it to the user that reads it, or to root",
        about.uid()
    );
    // systemd lets the unit's user in by an access list, whose mask shows as the group's right.
    let group_may_read = if is_credential(path) { 0o040 } else { 0 };
    let mode = about.mode() & 0o777;
    ensure!(
        mode & 0o077 & !group_may_read == 0,
        "{shown} can be used by others than its owner (mode {mode:04o}): chmod 600 it, and draw a \
         new key if somebody may have read it"
    );
    ensure!(
        about.len() < MOST_BYTES,
        "{shown} is too large for a key file"
    );
    Ok(usize::try_from(about.len())?)
}

/// `real` is the path without links.
fn ours(owner: u32, real: &Path) -> bool {
    owner == 0 || owner == geteuid().as_raw() || is_of_a_service(real)
}

/// Whether systemd has put it there: only root may write where it keeps the credentials of services, whose users own
/// them (systemd.exec(5)).
fn is_of_a_service(real: &Path) -> bool {
    let is_roots =
        || fs::metadata(SERVICES).is_ok_and(|it| it.uid() == 0 && it.mode() & 0o022 == 0);
    real.starts_with(SERVICES) && is_roots()
}

fn is_credential(path: &Path) -> bool {
    credentials().is_some_and(|directory| path.starts_with(directory))
}

/// Returns the file of the credential `name`, if systemd has handed one over.
pub fn credential(name: &str) -> Option<PathBuf> {
    let file = credentials()?.join(name);
    file.exists().then_some(file)
}

fn credentials() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os(CREDENTIALS)?);
    directory.is_absolute().then_some(directory)
}
