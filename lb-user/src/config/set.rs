//! `--set TABLE.KEY=VALUE`: any setting of the file, from the command line.

use std::ops::RangeInclusive;

use toml_edit::{Document, DocumentMut, Item, Table, Value};

use super::error::{ConfigError, Origin, Problem, ProblemKind};
use super::file::line;

/// The file's text with the settings laid into it, to be checked like any other.
pub(super) struct Laid {
    pub text: String,
    spots: Vec<Spot>,
}

/// Where a setting stands that was laid in.
struct Spot {
    set: String,
    lines: RangeInclusive<usize>,
    /// How many lines it has taken the place of.
    before: usize,
}

/// Lays settings into the file's text.
///
/// The key is `TABLE.KEY`, or `service.NAME.KEY` for the service of that name. The value is TOML;
/// what is no TOML value is taken for text, so that a shell's quotes need no second pair.
pub(super) fn apply(text: &str, sets: &[String]) -> Result<Laid, ConfigError> {
    let unchanged = || Laid {
        text: text.to_owned(),
        spots: Vec::new(),
    };
    let (false, Ok(file)) = (sets.is_empty(), Document::parse(text)) else {
        // The reading proper says what is wrong with the text, and where.
        return Ok(unchanged());
    };
    let mut document = file.clone().into_mut();
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
    let text = document.to_string();
    let Ok(laid) = Document::parse(text.as_str()) else {
        return Ok(unchanged());
    };
    let spot = |set: &String| {
        let lines = lines_of(&laid, set)?;
        let before = lines_of(&file, set).map_or(0, Iterator::count);
        Some(Spot {
            set: set.clone(),
            lines,
            before,
        })
    };
    let spots = sets.iter().filter_map(spot).collect();
    Ok(Laid { text, spots })
}

impl Laid {
    /// Lets what is wrong name the option that it comes from, or the line that it has in the file.
    pub fn blame(&self, mut error: ConfigError) -> ConfigError {
        for problem in &mut error.problems {
            if let Origin::Line { line, .. } = &mut problem.origin {
                let mut spots = self.spots.iter().rev();
                match spots.find(|it| it.lines.contains(line)) {
                    Some(spot) => problem.origin = Origin::Set(spot.set.clone()),
                    None => *line = self.line_before(*line),
                }
            }
        }
        error
    }

    fn line_before(&self, line: usize) -> usize {
        let mut counted: Vec<&RangeInclusive<usize>> = Vec::new();
        let mut before = line;
        for spot in self.spots.iter().filter(|it| *it.lines.end() < line) {
            if !counted.contains(&&spot.lines) {
                counted.push(&spot.lines);
                before = before + spot.before - spot.lines.clone().count();
            }
        }
        before
    }
}

/// Returns the lines at which the text has that setting.
fn lines_of(document: &Document<&str>, set: &str) -> Option<RangeInclusive<usize>> {
    let (table, key) = set.split_once('=')?.0.trim().rsplit_once('.')?;
    let table = match table.strip_prefix("service.") {
        Some(name) => {
            let mut services = document.get("service")?.as_array_of_tables()?.iter();
            services.find(|service| is_called(service, name))?
        }
        None => document.get(table)?.as_table()?,
    };
    let (key, value) = table.get_key_value(key)?;
    let line = |byte| line(document.raw(), byte);
    Some(line(key.span()?.start)..=line(value.span()?.end))
}

fn is_called(service: &Table, name: &str) -> bool {
    service.get("name").and_then(Item::as_str) == Some(name)
}

fn find<'a>(document: &'a mut DocumentMut, path: &str) -> Option<&'a mut Table> {
    if let Some(name) = path.strip_prefix("service.") {
        let services = document.get_mut("service")?.as_array_of_tables_mut()?;
        return services.iter_mut().find(|service| is_called(service, name));
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
    use lb_core::Threshold;
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

    /// A file of few lines, of which the last but one is wrong.
    const FILE: &str = "\
[manager]
interfaces = [\"eth1\"]

[failover]
down_after = \"2s\"

[[service]]
name = \"web\"
address = \"192.168.56.101:80\"
fallback = \"192.168.56.101:8080\"
reserve = \"99%\"
workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]
";

    #[test]
    fn an_error_names_the_option_or_the_line_of_the_file() {
        for (sets, said) in [
            (
                &["failover.down_after=2500"][..],
                &["--set failover.down_after=2500: "][..],
            ),
            (
                &["service.web.thresold=3"],
                &["--set service.web.thresold=3: there is no"],
            ),
            // Two that add a line each, and one that takes the place of one.
            (
                &[
                    "failover.up_after=3",
                    "failover.down_after=9s",
                    "manager.attach=tc",
                ],
                &["memlb.toml, line 11, service.reserve: "],
            ),
            (
                &[
                    "limits.flows=0",
                    "failover.up_after=0",
                    "failover.up_after=-1",
                ],
                &[
                    "--set failover.up_after=-1: -1 is out",
                    "--set limits.flows=0: 0 is out",
                    "memlb.toml, line 11, service.reserve: ",
                ],
            ),
        ] {
            let overrides = Overrides {
                set: sets.iter().map(|&set| set.to_owned()).collect(),
                ..Overrides::default()
            };
            let error = Config::parse(FILE, "memlb.toml", &overrides, None).unwrap_err();
            let error = error.to_string();
            for said in said {
                assert!(error.contains(said), "{said}\n{error}");
            }
        }
    }
}
