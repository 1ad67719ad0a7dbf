//! Settings of the command line, which override those of the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use toml::de::DeValue;

use super::error::{ConfigError, Origin, Problem, ProblemKind};

/// The values of options, by key, and of `--set`. They are validated together with the file, by the same rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub(super) options: BTreeMap<String, Vec<OsString>>,
    pub(super) set: Vec<String>,
}

/// A `--set TABLE.KEY=VALUE`. The table is `service.NAME` for the service of that name.
#[derive(Debug)]
pub(super) struct Assignment<'a> {
    pub set: &'a str,
    pub table: &'a str,
    pub key: &'a str,
    /// TOML, or else a string, so that a string needs no quotes within those of the shell.
    pub value: DeValue<'a>,
}

impl Overrides {
    /// Adds the value of the option that belongs to a key, such as `failover.down_after`.
    #[must_use]
    pub fn option(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.options
            .entry(key.to_owned())
            .or_default()
            .push(value.into());
        self
    }

    /// Adds a `--set`.
    #[must_use]
    pub fn set(mut self, assignment: &str) -> Self {
        self.set.push(assignment.to_owned());
        self
    }

    /// Whether the command line sets anything.
    pub fn is_empty(&self) -> bool {
        self.options.is_empty() && self.set.is_empty()
    }

    /// The directory of pins, if the command line names it.
    pub fn pin_path(&self) -> Option<&Path> {
        match self.values("manager.pin_path") {
            Some([path]) => Some(Path::new(path)),
            _ => None,
        }
    }

    pub(super) fn values(&self, key: &str) -> Option<&[OsString]> {
        self.options.get(key).map(Vec::as_slice)
    }

    /// Parses the values of `--set`. `is_table` tests whether the file has a table of that name.
    ///
    /// # Errors
    ///
    /// Names the first assignment that has no table, key or value.
    pub(super) fn assignments(
        &self,
        is_table: impl Fn(&str) -> bool,
    ) -> Result<Vec<Assignment<'_>>, ConfigError> {
        self.set
            .iter()
            .map(|set| assignment(set, &is_table))
            .collect()
    }
}

fn assignment<'a>(
    set: &'a str,
    is_table: &impl Fn(&str) -> bool,
) -> Result<Assignment<'a>, ConfigError> {
    let (path, value) = set
        .split_once('=')
        .ok_or_else(|| bad_assignment(set, "it has no \"=\""))?;
    let (table, key) = path
        .trim()
        .rsplit_once('.')
        .ok_or_else(|| bad_assignment(set, "the table of the setting is missing"))?;
    if !is_table(table) {
        return Err(bad_assignment(set, &format!("there is no table {table}")));
    }
    let value = value.trim();
    let toml = DeValue::parse(value).map(toml::Spanned::into_inner);
    Ok(Assignment {
        set,
        table,
        key,
        value: toml.unwrap_or_else(|_| DeValue::String(value.into())),
    })
}

fn bad_assignment(set: &str, what: &str) -> ConfigError {
    Problem {
        kind: ProblemKind::UnknownKey,
        origin: Origin::Flag { option: "--set" },
        key: String::new(),
        what: format!("cannot set {set:?}: {what}"),
        expected: "manager.KEY=VALUE, heartbeats.KEY=VALUE, failover.KEY=VALUE, limits.KEY=VALUE, \
             peer.NAME.KEY=VALUE or service.NAME.KEY=VALUE"
            .to_owned(),
        remedy: "memlb check --example prints every table with its settings".to_owned(),
    }
    .into()
}
