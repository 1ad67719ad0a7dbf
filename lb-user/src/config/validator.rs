//! Records where each value was written, and collects the problems.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{RawTable, RawValue};
use super::error::{BadValue, ConfigError, Origin, Problem, ProblemKind};
use super::overrides::{Assignment, Overrides};
use super::retired;
use super::words::nearest;

/// The origins and problems of the values of a configuration while it is validated.
///
/// A path names a value: `failover.down_after`, or `service.0.workers.1.name`.
pub(super) struct Validator<'a> {
    file: &'a str,
    pub overrides: &'a Overrides,
    pub assignments: &'a [Assignment<'a>],
    records: BTreeMap<String, ValueRecord>,
    problems: Vec<Problem>,
    syntax: Vec<Problem>,
}

struct ValueRecord {
    origin: Origin,
    is_valid: bool,
}

impl<'a> Validator<'a> {
    /// `syntax` has a problem for each line of the file that is not TOML.
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
            records: BTreeMap::new(),
            problems: Vec::new(),
            syntax,
        }
    }

    pub fn finish<T>(self, config: T) -> Result<T, ConfigError> {
        let mut problems = self.syntax;
        let lines: Vec<Origin> = problems.iter().map(|it| it.origin.clone()).collect();
        // A line that is not TOML can be the only cause of a problem in that line, or of a missing value.
        let is_independent = |it: &Problem| {
            matches!(it.origin, Origin::Line { .. })
                && !it.kind.may_follow_from_syntax()
                && !lines.contains(&it.origin)
        };
        let others = self.problems.into_iter();
        problems.extend(others.filter(|it| lines.is_empty() || is_independent(it)));
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
            self.record_origin(&path, given.source.origin());
            let near = nearest(key, names);
            misspelt.extend(near);
            let remedy = match (retired::key(&display_path(&path)), near) {
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

    /// Rejects a value of `key` that an earlier table of the list at `path` also has.
    pub fn reject_duplicates<T>(
        &mut self,
        (path, key): (&str, &str),
        tables: &[T],
        value: impl Fn(&T) -> String,
        kind: ProblemKind,
        owner: &str,
    ) {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (number, table) in tables.iter().enumerate() {
            let (path, value) = (format!("{path}.{number}.{key}"), value(table));
            if !self.are_valid(&[&path]) {
                continue;
            }
            let Some(first) = seen.get(&value) else {
                seen.insert(value, path);
                continue;
            };
            let line = match self.origin(first) {
                Some(Origin::Line { line, .. }) => format!(" (line {line})"),
                _ => String::new(),
            };
            self.reject(
                &path,
                kind,
                format!("{value:?} already belongs to {owner}{line}"),
                "each one different",
                "correct or remove one of the two",
            );
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
        let absent = self.absent_origin();
        let record = self.records.entry(path.to_owned());
        let record = record.or_insert(ValueRecord {
            origin: absent,
            is_valid: false,
        });
        record.is_valid = false;
        self.problems.push(Problem {
            kind,
            origin: record.origin.clone(),
            key: display_path(path),
            what: what.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        });
    }

    /// Whether none of the values has a problem so far, so that one mistake is reported once.
    pub fn are_valid(&self, paths: &[&str]) -> bool {
        let mut records = paths.iter().map(|path| self.records.get(*path));
        records.all(|record| record.is_some_and(|it| it.is_valid))
    }

    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.records.get(path).map(|record| &record.origin)
    }

    /// Records where the value at `path` was written.
    pub fn record_origin(&mut self, path: &str, origin: Origin) {
        match self.records.get_mut(path) {
            Some(record) => record.origin = origin,
            None => {
                let is_valid = true;
                self.records
                    .insert(path.to_owned(), ValueRecord { origin, is_valid });
            }
        }
    }

    /// Records and returns the origin of a value that the file may lack.
    pub fn record_given(&mut self, path: &str, given: Option<RawValue<'_>>) -> Origin {
        let origin = given.map_or(self.absent_origin(), |given| given.source.origin());
        self.record_origin(path, origin.clone());
        origin
    }

    /// The origin of a value that the file does not give.
    pub fn absent_origin(&self) -> Origin {
        Origin::file(self.file, None)
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

    /// Excludes a value from further checks.
    pub fn remove(&mut self, path: &str) {
        self.records.remove(path);
    }
}

/// A path without the numbers of list entries, for messages.
pub(super) fn display_path(path: &str) -> String {
    let parts = path.split('.').filter(|it| it.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}
