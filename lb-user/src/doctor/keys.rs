//! The keys that sign heartbeats: whether they exist, are private, and every worker has one.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use lb_core::counted;

use super::Finding;
use crate::{
    heartbeat::Authentication,
    keys::{DuplicateKey, apply_keys_here, read_keys},
};

#[derive(Debug, Clone)]
pub struct KeyFacts {
    pub authentication: Authentication,
    pub path: PathBuf,
    pub keys: KeyState,
}

#[derive(Debug, Clone)]
pub enum KeyState {
    Read {
        count: usize,
        /// Configured workers without a key.
        without: BTreeSet<String>,
        /// Names the other files in the directory.
        others: Option<String>,
    },
    Bad {
        why: String,
        remedy: String,
    },
}

pub fn gather(authentication: Authentication, path: &Path, workers: &BTreeSet<&str>) -> KeyFacts {
    let keys = match authentication {
        Authentication::Off => KeyState::Read {
            count: 0,
            without: BTreeSet::new(),
            others: None,
        },
        _ => match read_keys(path) {
            Ok(keys) => KeyState::Read {
                count: keys.len(),
                without: (keys
                    .workers_without_key(workers.iter().copied())
                    .into_iter())
                .map(str::to_owned)
                .collect(),
                others: keys.warning(path),
            },
            Err(error) => KeyState::Bad {
                why: format!("{error:#}"),
                remedy: remedy_for(path, &error),
            },
        },
    };
    KeyFacts {
        authentication,
        path: path.to_owned(),
        keys,
    }
}

/// Returns the key files that other users than the owner can read or write.
pub fn open_to_others(path: &Path) -> Vec<PathBuf> {
    let mut files = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_owned()],
    };
    files.retain(|file| fs::metadata(file).is_ok_and(|it| it.is_file() && it.mode() & 0o077 != 0));
    files.sort();
    files
}

pub fn findings(facts: &KeyFacts) -> Vec<Finding> {
    let others = match &facts.keys {
        KeyState::Read {
            others: Some(found),
            ..
        } => Some(Finding::warning(
            "keys",
            found.clone(),
            format!("ls -la {}", facts.path.display()),
        )),
        _ => None,
    };
    [Some(finding(facts)), others]
        .into_iter()
        .flatten()
        .collect()
}

fn finding(facts: &KeyFacts) -> Finding {
    let KeyFacts {
        authentication,
        path,
        keys,
    } = facts;
    let at = path.display();
    match (authentication, keys) {
        (Authentication::Off, _) => Finding::warning(
            "keys",
            "heartbeats are not authenticated: any host that reaches the port can steer the balancer",
            "keep the port to a trusted network; or memlb keygen --name WORKER for each, and \
             --set heartbeats.authentication=permissive",
        ),
        (_, KeyState::Bad { why, remedy }) => Finding::problem("keys", why.clone(), remedy.clone()),
        (_, KeyState::Read { count: 0, .. }) => Finding::problem(
            "keys",
            format!("there is no key at {at}"),
            format!("memlb keygen --name WORKER --output {at}/WORKER.key"),
        ),
        (_, KeyState::Read { count, without, .. }) if without.is_empty() => Finding::ok(
            "keys",
            format!(
                "{} at {at}, one or more for every worker",
                counted(*count, "key")
            ),
        ),
        (_, KeyState::Read { without, .. }) => {
            let names: Vec<&str> = without.iter().map(String::as_str).collect();
            let made: Vec<String> = names
                .iter()
                .map(|name| format!("memlb keygen --name {name} --output {at}/{name}.key"))
                .collect();
            let found = format!("there is no key of {} at {at}", names.join(", "));
            let remedy = format!("{}; {}", made.join("; "), apply_keys_here());
            match authentication {
                Authentication::Enforce => Finding::problem("keys", found, remedy),
                _ => Finding::warning("keys", found, remedy),
            }
        }
    }
}

/// Returns the command that repairs a key file or a directory of key files, from the error of reading it.
pub fn remedy_for(path: &Path, error: &anyhow::Error) -> String {
    let at = path.display();
    if !path.exists() {
        return format!(
            "install -d -m 700 {at}; memlb keygen --name WORKER --output {at}/WORKER.key"
        );
    }
    if let Some(twice) = error.downcast_ref::<DuplicateKey>() {
        return remove_duplicate(twice);
    }
    let open = open_to_others(path);
    if !open.is_empty() {
        let files: Vec<String> = open.iter().map(|file| file.display().to_string()).collect();
        return format!(
            "chmod 600 {}    (and make a new key if another user may have read it)",
            files.join(" ")
        );
    }
    match is_others(path) {
        true => format!("chown -R root: {at} && chmod 700 {at}; ls -la {at}"),
        false => format!("ls -la {at}    (and remove or repair the named file)"),
    }
}

fn remove_duplicate(DuplicateKey { first, second, .. }: &DuplicateKey) -> String {
    let file = |location: &str| match location.rsplit_once(", line ") {
        Some((file, _)) => file.to_owned(),
        None => location.to_owned(),
    };
    match (file(first), file(second)) {
        (one, other) if one != other => {
            format!("rm {other}    (or {one}: whichever its agent does not sign with)")
        }
        (one, _) => format!("remove one of the two lines from {one}"),
    }
}

/// Whether another user owns a key, or can write keys.
fn is_others(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut all = entries.map(|entry| entry.path()).chain([path.to_owned()]);
    let own = nix::unistd::geteuid().as_raw();
    all.any(|it| match fs::metadata(&it) {
        Ok(metadata) => ![0, own].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0,
        Err(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{doctor::Severity, keys::write_new};

    fn examine(authentication: Authentication, path: &Path, workers: &[&str]) -> Finding {
        let workers = workers.iter().copied().collect();
        findings(&gather(authentication, path, &workers)).remove(0)
    }

    #[test]
    fn reads_the_keys_as_the_manager_will() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let keys = directory.path();
        let file = keys.join("worker1.key");
        let enforce = Authentication::Enforce;
        let none = examine(enforce, keys, &["worker1"]);
        assert!(none.found.contains("there is no key at"), "{none:?}");

        write_new(&file, "worker1").unwrap();
        assert_eq!(examine(enforce, keys, &["worker1"]).severity, Severity::Ok);
        let without = examine(enforce, keys, &["worker1", "worker2"]);
        let remedy = "memlb keygen --name worker2 --output";
        without.assert(Severity::Problem, "", remedy);
        let permissive = examine(Authentication::Permissive, keys, &["worker2"]);
        assert_eq!(permissive.severity, Severity::Warning);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let open = examine(enforce, keys, &["worker1"]);
        let chmod = format!("chmod 600 {} ", file.display());
        open.assert(Severity::Problem, "", &chmod);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let again = keys.join("worker1-again.key");
        fs::copy(&file, &again).unwrap();
        let twice = examine(enforce, keys, &["worker1"]);
        assert!(twice.found.contains("exists twice"), "{twice:?}");
        let remedy = twice.remedy.unwrap();
        assert!(remedy.starts_with("rm "), "{remedy}");
        for file in [&file, &again] {
            assert!(remedy.contains(&file.display().to_string()), "{remedy}");
        }
        fs::write(&again, "not a key").unwrap();
        let odd = examine(enforce, keys, &["worker1"]);
        assert!(!odd.remedy.unwrap().contains("chown"));

        let absent = examine(enforce, &keys.join("absent"), &["worker1"]);
        assert!(absent.remedy.unwrap().starts_with("install -d -m 700"));
        examine(Authentication::Off, keys, &[]).assert(Severity::Warning, "", "");
    }
}
