//! A file as a source of workers: TOML or JSON, read again when it changes.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow};
use tokio::time::{MissedTickBehavior, interval};

use super::SourceClient;
use crate::{encoding, membership::WorkerList};

/// How often the file is checked for changes.
const INTERVAL: Duration = Duration::from_millis(500);

/// Reads the workers of a file: JSON if its name ends in `.json`, else TOML.
///
/// # Errors
///
/// Says what is wrong, with line and column.
pub fn read(path: &Path) -> Result<WorkerList> {
    let context = || format!("read the workers of {}", path.display());
    let bytes = encoding::read(path).with_context(context)?;
    let text = encoding::check(&bytes).map_err(|found| {
        let remedy = found.remedy(&path.display().to_string());
        anyhow!("{found}; {remedy}").context(context())
    })?;
    let text = text.trim_start_matches(encoding::BYTE_ORDER_MARK);
    match path.extension().is_some_and(|it| it == "json") {
        true => serde_json::from_str(text).with_context(context),
        false => toml::from_str(text).with_context(context),
    }
}

/// Sends the workers of a file to the manager whenever the file has changed; never returns. If the file cannot be read,
/// the last list stays in force.
pub async fn watch(mut source: SourceClient, path: &Path) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut file = WatchedFile::default();
    loop {
        ticks.tick().await;
        match file.content(path) {
            Ok(list) => source.publish(list).await,
            Err(problem) => source.report_problem(problem).await,
        }
    }
}

/// A file's content, and the version that it was read from.
#[derive(Debug, Default)]
struct WatchedFile {
    seen: Option<FileVersion>,
    content: Option<Result<WorkerList, String>>,
}

impl WatchedFile {
    /// Returns the content, or why there is none. Reads the file again if it has changed, or if it could not be read:
    /// other permissions do not change the version.
    fn content(&mut self, path: &Path) -> &Result<WorkerList, String> {
        let version = version(path);
        let is_current = version.is_some() && version == self.seen;
        let known = self.content.take().filter(|it| is_current && it.is_ok());
        self.seen = version;
        let read = || read(path).map_err(|error| format!("{error:#}"));
        self.content.insert(known.unwrap_or_else(read))
    }
}

/// Inode, length and time of a file.
type FileVersion = (u64, u64, i64, i64);

/// Changes when the file is written or replaced.
fn version(path: &Path) -> Option<FileVersion> {
    let metadata = fs::metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Result<WorkerList> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn reads_toml_and_json() {
        let toml = r#"
            [[workers]]
            service = "web"
            name = "worker1"
            address = "192.168.56.103:8081"
            [[workers]]
            service = "web"
            name = "worker2"
            address = "192.168.56.104:8081"
            weight = "50%"
            drain = "its disk is full"
        "#;
        let json = r#"{"workers": [
            {"service": "web", "name": "worker1", "address": "192.168.56.103:8081"},
            {"service": "web", "name": "worker2", "address": "192.168.56.104:8081", "weight": 50,
             "drain": "its disk is full"}
        ]}"#;
        let list = parse("workers.toml", toml).unwrap();
        assert_eq!(list, parse("workers.json", json).unwrap());
        let weights: Vec<u32> = list.workers.iter().map(|it| it.weight).collect();
        assert_eq!(weights, [100, 50]);
        for (name, text) in [
            ("workers.toml", "workers = []"),
            ("workers.toml", "\u{feff}workers = []"),
            ("workers.json", "\u{feff}{\"workers\": []}"),
        ] {
            assert_eq!(
                parse(name, text).unwrap(),
                WorkerList::default(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_file_that_could_not_be_read_is_read_again_though_its_version_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workers.toml");
        let modified = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(modified).unwrap();
        };
        let mut file = WatchedFile::default();
        write("workers = [}");
        assert!(file.content(&path).is_err());
        write("workers = []");
        assert_eq!(file.content(&path), &Ok(WorkerList::default()));
        // An unchanged file is not read.
        write("workers = [}");
        assert!(file.content(&path).is_ok());
    }

    #[test]
    fn reports_what_is_wrong_and_where() {
        for (text, says) in [
            ("", "missing field `workers`"),
            ("workers = [{ name = \"a\" }]", "missing field `service`"),
            ("workers = []\nworker = []", "unknown field `worker`"),
            (
                "workers = [{ service = \"web\", name = \"a\", address = \"1\", weight = \"half\" }]",
                "a whole number of percent, as in 50 or \"50%\", and not \"half\"",
            ),
            ("workers = [", "line 1"),
            ("workers = []\0", "not a text file"),
        ] {
            let error = format!("{:#}", parse("workers.toml", text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
            assert!(error.contains("workers.toml"), "{error}");
        }
    }
}
