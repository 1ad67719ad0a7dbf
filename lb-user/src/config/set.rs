//! `--set TABLE.KEY=VALUE`: any setting of the file, from the command line.

use toml_edit::{DocumentMut, Item, Table, Value};

use super::error::{ConfigError, Origin, Problem, ProblemKind};

/// Returns the file's text with the settings laid into it, to be checked like any other.
///
/// The key is `TABLE.KEY`, or `service.NAME.KEY` for the service of that name. The value is TOML;
/// what is no TOML value is taken for text, so that a shell's quotes need no second pair.
pub(super) fn apply(text: &str, sets: &[String]) -> Result<String, ConfigError> {
    if sets.is_empty() {
        return Ok(text.to_owned());
    }
    let Ok(mut document) = text.parse::<DocumentMut>() else {
        // The reading proper says what is wrong with the text, and where.
        return Ok(text.to_owned());
    };
    for set in sets {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| refuse(set, "there is no \"=\" in it"))?;
        let (table, key) = path
            .trim()
            .rsplit_once('.')
            .ok_or_else(|| refuse(set, "the setting's table is missing"))?;
        let table = find(&mut document, table)
            .ok_or_else(|| refuse(set, &format!("there is no table {table}")))?;
        let value = value.trim();
        let value = value.parse().unwrap_or_else(|_| Value::from(value));
        table.insert(key, Item::Value(value));
    }
    Ok(document.to_string())
}

fn find<'a>(document: &'a mut DocumentMut, path: &str) -> Option<&'a mut Table> {
    if let Some(name) = path.strip_prefix("service.") {
        let services = document.get_mut("service")?.as_array_of_tables_mut()?;
        return services
            .iter_mut()
            .find(|service| service.get("name").and_then(Item::as_str) == Some(name));
    }
    let known = ["manager", "heartbeats", "failover", "limits"].contains(&path);
    known.then_some(())?;
    document
        .entry(path)
        .or_insert_with(|| Item::Table(Table::new()))
        .as_table_mut()
}

fn refuse(set: &str, what: &str) -> ConfigError {
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

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};
    use crate::core::Threshold;
    use std::time::Duration;

    fn example_with(sets: &[&str]) -> Result<Config, String> {
        let overrides = Overrides {
            set: sets.iter().map(|&set| set.to_owned()).collect(),
            ..Overrides::default()
        };
        Config::example(&overrides, None).map_err(|error| error.to_string())
    }

    #[test]
    fn sets_what_the_file_says_and_what_it_leaves_out() {
        let config = example_with(&[
            "failover.down_after=2s",
            "limits.flows=1000",
            "manager.interfaces=[\"eth7\", \"eth8\"]",
            "service.web.threshold=\"10%\"",
        ])
        .unwrap();
        assert_eq!(config.failover.down_after, Duration::from_secs(2));
        assert_eq!(config.limits.flows, 1000);
        assert_eq!(config.manager.interfaces, ["eth7", "eth8"]);
        assert_eq!(config.services[0].threshold, Threshold::Percent(10));
    }

    #[test]
    fn is_checked_like_the_file() {
        for (set, said) in [
            ("failover.down_after=1ms", "down_after"),
            ("limits.flow=1", "did you mean \"flows\"?"),
            ("limits.flows", "there is no \"=\" in it"),
            ("flows=1", "table is missing"),
            ("limit.flows=1", "there is no table limit"),
            (
                "service.wed.threshold=auto",
                "there is no table service.wed",
            ),
        ] {
            let error = example_with(&[set]).unwrap_err();
            assert!(error.contains(said), "{set}: {error}");
        }
    }
}
