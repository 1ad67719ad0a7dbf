//! Reads the keys of tables, records where each value was written, and collects what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{RawTable, RawValue, Source};
use super::error::{BadValue, ConfigError, Origin, Problem, ProblemKind};
use super::kinds::Kind;
use super::overrides::{Assignment, Overrides};
use super::retired;
use super::section::{Key, Section};
use super::words::nearest;

/// The remedy for a table or a list that was written as something else.
pub(super) const REWRITE: &str = "write it so; `memlb check --example` prints a whole file";

/// Everything that is known of a configuration while it is validated.
///
/// A path names a value: `failover.down_after`, or `service.0.workers.1.name`.
pub(super) struct Validator<'a> {
    file: &'a str,
    overrides: &'a Overrides,
    assignments: &'a [Assignment<'a>],
    entries: BTreeMap<String, Entry>,
    problems: Vec<Problem>,
}

struct Entry {
    origin: Origin,
    is_good: bool,
}

impl<'a> Validator<'a> {
    pub fn new(file: &'a str, overrides: &'a Overrides, assignments: &'a [Assignment<'a>]) -> Self {
        Self {
            file,
            overrides,
            assignments,
            entries: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    pub fn finish<T>(self, config: T) -> Result<T, ConfigError> {
        match self.problems.is_empty() {
            true => Ok(config),
            false => Err(ConfigError {
                problems: self.problems,
            }),
        }
    }

    /// Reads a table, absent ones too: the command line may set their keys.
    pub fn section<T: Section>(&mut self, path: &str, given: Option<RawValue<'a>>) -> T {
        let origin = given.map_or(self.absent(), |given| given.source.origin());
        self.note(path, origin.clone());
        let mut values = match given.map(RawValue::table) {
            Some(Ok(values)) => values,
            None => RawTable::new(),
            Some(Err(_)) => {
                self.reject(
                    path,
                    ProblemKind::WrongType,
                    "it is one table, with one bracket on either side",
                    format!("[{path}]"),
                    REWRITE,
                );
                RawTable::new()
            }
        };
        self.assign(path, &mut values);
        let names: Vec<&'static str> = T::describe().iter().map(|it| it.key.name).collect();
        let misspelt = self.report_unknown(path, &values, &names);
        T::read(&mut Fields {
            path,
            values,
            origin,
            misspelt,
            validator: self,
        })
    }

    /// Reads a table that may be repeated.
    pub fn sections<T: Section>(&mut self, path: &str, given: Option<RawValue<'a>>) -> Vec<T> {
        self.note(
            path,
            given.map_or(self.absent(), |given| given.source.origin()),
        );
        let tables = given.map(RawValue::list).unwrap_or(Ok(Vec::new()));
        let tables = tables
            .ok()
            .filter(|it| it.iter().all(|it| it.table().is_ok()));
        let Some(tables) = tables else {
            self.reject(
                path,
                ProblemKind::WrongType,
                format!("each {path} has a table of its own, with two brackets on either side"),
                format!("[[{path}]]"),
                REWRITE,
            );
            return Vec::new();
        };
        let table = |(number, table)| self.section(&format!("{path}.{number}"), Some(table));
        tables.into_iter().enumerate().map(table).collect()
    }

    /// Lays the values of `--set` over those of the file.
    fn assign(&self, path: &str, values: &mut RawTable<'a>) {
        let name = values.get("name").and_then(|name| name.text().ok());
        let table = match (path.strip_prefix("service."), name) {
            (Some(number), Some(name)) if !number.contains('.') => format!("service.{name}"),
            _ => path.to_owned(),
        };
        for it in self.assignments.iter().filter(|it| it.table == table) {
            values.insert(it.key, RawValue::toml(&it.value, Source::Set(it.set)));
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

    fn absent(&self) -> Origin {
        Origin::File {
            file: self.file.to_owned(),
        }
    }
}

/// The keys of one table, while they are read.
pub(super) struct Fields<'v, 'a> {
    path: &'v str,
    values: RawTable<'a>,
    origin: Origin,
    misspelt: BTreeSet<&'static str>,
    validator: &'v mut Validator<'a>,
}

impl<'a> Fields<'_, 'a> {
    /// Reads the value of a key: the command line's, or else the file's, or else the default.
    pub fn read<K: Kind>(&mut self, key: Key, kind: &K, default: K::Value) -> K::Value {
        let path = format!("{}.{}", self.path, key.name);
        let option = key.option.and_then(|option| {
            let values = self.validator.overrides.values(&public(&path))?;
            Some(RawValue::option(values, option.flag))
        });
        let Some(given) = option.or_else(|| self.values.get(key.name).copied()) else {
            self.absent(key, &path);
            return default;
        };
        self.validator.note(&path, given.source.origin());
        let value = kind.read(given, &path, self.validator);
        value.unwrap_or_else(|| {
            self.validator.advise_default(&kind.show(&default));
            default
        })
    }

    fn absent(&mut self, key: Key, path: &str) {
        // Of a table that may be repeated, the line says which one it is.
        let origin = match path.starts_with("service.") || key.is_required {
            true => self.origin.clone(),
            false => self.validator.absent(),
        };
        self.validator.note(path, origin);
        if !key.is_required {
            return;
        }
        if self.misspelt.contains(key.name) {
            // The unknown key was reported.
            self.validator.forget(path);
            return;
        }
        self.validator.reject(
            path,
            ProblemKind::Missing,
            "the setting is missing",
            format!("{} = {}", key.name, key.example.unwrap_or_default()),
            "add it to this table",
        );
    }
}

impl Validator<'_> {
    /// Names the default in the remedy of a value that was out of bounds.
    fn advise_default(&mut self, default: &str) {
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
    fn forget(&mut self, path: &str) {
        self.entries.remove(path);
    }
}

/// A path as a person knows it, without numbers.
fn public(path: &str) -> String {
    let parts = path.split('.').filter(|it| it.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}
