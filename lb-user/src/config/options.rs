//! The options of the command line that the keys declare.

use std::ffi::OsString;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::example::tables;
use super::key::{CommandLineOption, OptionForm};
use super::overrides::Overrides;

/// The keys that have an option: as `table.key`, the key's name, and the option.
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
