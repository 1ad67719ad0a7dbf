//! Settings of the command line, which go before those of the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::DeValue;

use super::error::{ConfigError, Origin, Problem, ProblemKind};
use super::example::tables;
use super::section::{CommandLineOption, OptionForm};

/// The values of options, by key, and of `--set`. They are validated together with the file, by the same rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    options: BTreeMap<String, Vec<OsString>>,
    set: Vec<String>,
}

/// A `--set TABLE.KEY=VALUE`. The table is `service.NAME` for the service of that name.
#[derive(Debug)]
pub(super) struct Assignment<'a> {
    pub set: &'a str,
    pub table: &'a str,
    pub key: &'a str,
    /// TOML, or else text, so that a shell's quotes need no second pair.
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

    /// Parses `--set`. `is_table` says whether there is a table of that name.
    ///
    /// # Errors
    ///
    /// Names the first that has no table, key or value.
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
        origin: Origin::Flag("--set"),
        key: String::new(),
        what: format!("cannot set {set:?}: {what}"),
        expected:
            "manager.KEY=VALUE, heartbeats.KEY=VALUE, failover.KEY=VALUE, limits.KEY=VALUE or \
             service.NAME.KEY=VALUE"
                .to_owned(),
        remedy: "memlb check --example prints every table with its settings".to_owned(),
    }
    .into()
}

/// The keys that have an option, as `table.key` with the key's name.
fn options() -> impl Iterator<Item = (String, &'static str, CommandLineOption)> {
    tables().into_iter().flat_map(|table| {
        let name = table.name;
        table.keys.into_iter().filter_map(move |described| {
            let key = described.key;
            Some((format!("{name}.{}", key.name), key.name, key.option?))
        })
    })
}

const SET: &str = "set";

impl clap::Args for Overrides {
    fn augment_args(command: Command) -> Command {
        let command = options().fold(command, |command, (_, name, option)| {
            command.arg(argument(name, option))
        });
        command.arg(
            Arg::new(SET)
                .long(SET)
                .action(ArgAction::Append)
                .value_name("TABLE.KEY=VALUE")
                .help("Any setting of the file: failover.up_after=3, service.web.threshold=10%; may be repeated"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(name: &'static str, option: CommandLineOption) -> Arg {
    let argument = Arg::new(name)
        .long(option.flag.trim_start_matches('-'))
        .help(option.help);
    let action = match option.form {
        OptionForm::Switch => return argument.action(ArgAction::SetTrue),
        OptionForm::Value => ArgAction::Set,
        OptionForm::List => ArgAction::Append,
    };
    argument
        .action(action)
        .value_name(option.value_name)
        .value_parser(OsStringValueParser::new())
}

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Self::default();
        overrides.update_from_arg_matches(matches)?;
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (key, name, option) in options() {
            let values: Vec<OsString> = match option.form {
                OptionForm::Switch if matches.get_flag(name) => vec!["true".into()],
                OptionForm::Switch => continue,
                OptionForm::Value | OptionForm::List => matches
                    .get_many::<OsString>(name)
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
            };
            if !values.is_empty() {
                self.options.insert(key, values);
            }
        }
        let set = matches.get_many::<String>(SET);
        self.set.extend(set.into_iter().flatten().cloned());
        Ok(())
    }
}
