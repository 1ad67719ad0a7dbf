//! Records where each value was written, and collects what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::document::RawTable;
use super::error::{BadValue, ConfigError, Origin, Problem, ProblemKind};
use super::overrides::{Assignment, Overrides};
use super::retired;
use super::words::nearest;

/// Everything that is known of a configuration while it is validated.
///
/// A path names a value: `failover.down_after`, or `service.0.workers.1.name`.
pub(super) struct Validator<'a> {
    file: &'a str,
    pub overrides: &'a Overrides,
    pub assignments: &'a [Assignment<'a>],
    entries: BTreeMap<String, Entry>,
    problems: Vec<Problem>,
    syntax: Vec<Problem>,
}

struct Entry {
    origin: Origin,
    is_good: bool,
}

impl<'a> Validator<'a> {
    /// `syntax` has the places of the file that are not TOML.
    pub fn new(
        file: &'a str,
        overrides: &'a Overrides,
        assignments: &'a [Assignment<'a>],
        syntax: Vec<Problem>,
    ) -> Self {
        Self {
            file,
            overrides,
            assignments,
            entries: BTreeMap::new(),
            problems: Vec::new(),
            syntax,
        }
    }

    pub fn finish<T>(self, config: T) -> Result<T, ConfigError> {
        let mut problems = self.syntax;
        match problems.is_empty() {
            true => problems = self.problems,
            // What is missing, or stands in a line that is not TOML, may follow from that line alone.
            false => {
                let lines: Vec<Origin> = problems.iter().map(|it| it.origin.clone()).collect();
                let others = self.problems.into_iter();
                problems.extend(others.filter(|it| {
                    matches!(it.origin, Origin::Line { .. })
                        && !it.kind.may_follow_from_syntax()
                        && !lines.contains(&it.origin)
                }));
            }
        }
        match problems.is_empty() {
            true => Ok(config),
            false => Err(ConfigError { problems }),
        }
    }

    /// Reports the keys that are not declared, and returns the declared ones that were probably meant.
    pub fn report_unknown(
        &mut self,
        path: &str,
        values: &RawTable<'a>,
        names: &[&'static str],
    ) -> BTreeSet<&'static str> {
        let mut misspelt = BTreeSet::new();
        for (key, given) in values.iter().filter(|(key, _)| !names.contains(key)) {
            let path = match path {
                "" => (*key).to_owned(),
                table => format!("{table}.{key}"),
            };
            self.note(&path, given.source.origin());
            let near = nearest(key, names);
            misspelt.extend(near);
            let remedy = match (retired::key(&public(&path)), near) {
                (Some(instead), _) => instead.to_owned(),
                (None, Some(near)) => format!("did you mean {near:?}?"),
                (None, None) => "remove it, or move it to the table it belongs to".to_owned(),
            };
            self.reject(
                &path,
                ProblemKind::UnknownKey,
                format!("there is no setting {key:?} here"),
                format!("one of {}", names.join(", ")),
                remedy,
            );
        }
        misspelt
    }

    /// Returns the value, or reports what is wrong with it.
    pub fn check<T>(&mut self, path: &str, value: Result<T, BadValue>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(bad) => {
                self.reject(path, bad.kind, bad.what, bad.expected, bad.remedy);
                None
            }
        }
    }

    /// Reports a problem of the value at `path`.
    pub fn reject(
        &mut self,
        path: &str,
        kind: ProblemKind,
        what: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let absent = self.absent();
        let entry = self.entries.entry(path.to_owned());
        let entry = entry.or_insert(Entry {
            origin: absent,
            is_good: false,
        });
        entry.is_good = false;
        self.problems.push(Problem {
            kind,
            origin: entry.origin.clone(),
            key: public(path),
            what: what.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        });
    }

    /// Whether the values have had no problem so far: one mistake is reported once.
    pub fn are_good(&self, paths: &[&str]) -> bool {
        let mut entries = paths.iter().map(|path| self.entries.get(*path));
        entries.all(|entry| entry.is_some_and(|it| it.is_good))
    }

    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.entries.get(path).map(|entry| &entry.origin)
    }

    /// Records where the value at `path` was written.
    pub fn note(&mut self, path: &str, origin: Origin) {
        match self.entries.get_mut(path) {
            Some(entry) => entry.origin = origin,
            None => {
                let is_good = true;
                self.entries
                    .insert(path.to_owned(), Entry { origin, is_good });
            }
        }
    }

    pub fn absent(&self) -> Origin {
        Origin::File {
            file: self.file.to_owned(),
        }
    }

    /// Names the default in the remedy of a value that was out of bounds.
    pub fn advise_default(&mut self, default: &str) {
        if let Some(problem) = self.problems.last_mut()
            && matches!(
                problem.kind,
                ProblemKind::OutOfRange | ProblemKind::ZeroInterval
            )
        {
            problem.remedy = format!("the default is {default}");
        }
    }

    /// Keeps a value out of further checks.
    pub fn forget(&mut self, path: &str) {
        self.entries.remove(path);
    }
}

/// A path as a person knows it, without numbers.
pub(super) fn public(path: &str) -> String {
    let parts = path.split('.').filter(|it| it.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}
