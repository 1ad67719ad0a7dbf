//! The file's schema, as written: nothing is checked here but names and TOML types.

use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Origin, Problem, ProblemKind};

/// A value that the file may give, with its place.
pub(super) type Given<T> = Option<Spanned<T>>;

/// A string, or a bare number where a unit or a quote was forgotten.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string")]
pub(super) enum Scalar {
    Text(String),
    Integer(i64),
}

impl Scalar {
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Integer(number) => number.to_string(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub manager: ManagerTable,
    #[serde(default)]
    pub heartbeats: HeartbeatsTable,
    #[serde(default)]
    pub failover: FailoverTable,
    #[serde(default)]
    pub limits: LimitsTable,
    #[serde(default, rename = "service")]
    pub services: Vec<Spanned<ServiceTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManagerTable {
    pub interfaces: Given<Vec<String>>,
    pub attach: Given<String>,
    pub heartbeat_listen: Given<String>,
    pub pin_path: Given<String>,
    pub control_socket: Given<String>,
    pub state_file: Given<String>,
    pub event_log: Given<String>,
    pub legacy_heartbeats: Given<bool>,
    pub http_listen: Given<String>,
    pub http_names: Given<Vec<String>>,
    pub nat_sources: Given<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeartbeatsTable {
    pub authentication: Given<String>,
    pub keys: Given<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailoverTable {
    pub heartbeat_interval: Given<Scalar>,
    pub down_after: Given<Scalar>,
    pub up_after: Given<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsTable {
    pub services: Given<i64>,
    pub backends: Given<i64>,
    pub flows: Given<i64>,
    pub nat_ports: Given<String>,
    pub established_idle: Given<Scalar>,
    pub datagram_idle: Given<Scalar>,
    pub closing_idle: Given<Scalar>,
    pub half_open_idle: Given<Scalar>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceTable {
    pub name: Given<String>,
    pub address: Given<String>,
    pub protocol: Given<String>,
    pub policy: Given<String>,
    pub threshold: Given<Scalar>,
    pub hold: Given<Scalar>,
    pub rebalance_interval: Given<Scalar>,
    pub reserve: Given<Scalar>,
    pub pressure_limit: Given<Scalar>,
    pub ramp_up: Given<Scalar>,
    pub max_share: Given<Scalar>,
    pub mode: Given<String>,
    pub fallback: Given<String>,
    pub workers: Given<Vec<Spanned<WorkerTable>>>,
    pub auto_join: Given<AutoJoinTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AutoJoinTable {
    pub networks: Given<Vec<Spanned<String>>>,
    pub port: Given<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerTable {
    pub name: Given<String>,
    pub address: Given<String>,
    pub weight: Given<Scalar>,
}

/// Reads the text; what is wrong with it is told with its line.
pub(super) fn parse(text: &str, name: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| explain(&error, text, name).into())
}

/// Returns the line, counted from 1, in which a byte of the text stands.
pub(super) fn line(text: &str, byte: usize) -> usize {
    let before = text.bytes().take(byte);
    1 + before.filter(|&byte| byte == b'\n').count()
}

fn explain(error: &toml::de::Error, text: &str, name: &str) -> Problem {
    let byte = error.span().map_or(0, |span| span.start);
    let line = line(text, byte);
    let mut key = key_at(text, line);
    let header = text.lines().nth(line - 1).unwrap_or_default();
    let is_repeated = header.trim_start().starts_with("[[");
    // The parser's words are lines of prose; one line is what fits here.
    let message = error.message().replace('\n', ", ");
    let (kind, what, expected, remedy) =
        if let Some((setting, what, expected)) = misshapen(&message, &key, is_repeated) {
            key = setting;
            (
                ProblemKind::WrongType,
                what.to_owned(),
                expected,
                "write it so; `memlb check --example` prints a whole file".to_owned(),
            )
        } else if let Some((unknown, known)) = unknown_field(&message) {
            // In an inline table the line begins with another key.
            if !key.ends_with(unknown) {
                key = unknown.to_owned();
            }
            (
                ProblemKind::UnknownKey,
                format!("there is no setting {unknown:?} here"),
                format!("one of {}", known.join(", ")),
                match nearest(unknown, &known) {
                    Some(nearest) => format!("did you mean {nearest:?}?"),
                    None => "remove it, or move it to the table it belongs to".to_owned(),
                },
            )
        } else if message.starts_with("invalid type") || message.starts_with("expected a string") {
            let (what, expected) = message.split_once(", expected ").unwrap_or((&message, ""));
            let expected = match expected {
                "" | "a string" | "struct Spanned" => "a value in quotes",
                "a sequence" => "a list in square brackets, as in [\"one\", \"two\"]",
                "a boolean" => "true or false, without quotes",
                "i64" => "a whole number, without quotes",
                other => other,
            };
            (
                ProblemKind::WrongType,
                what.to_owned(),
                expected.to_owned(),
                "compare with the same setting in the example, memlb.toml".to_owned(),
            )
        } else {
            (
                ProblemKind::Syntax,
                message,
                "TOML: tables in brackets, key = value, text in quotes".to_owned(),
                "correct this line; memlb check FILE tells whether all is well".to_owned(),
            )
        };
    Problem {
        kind,
        origin: Origin::Line {
            file: name.to_owned(),
            line,
        },
        key,
        what,
        expected,
        remedy,
    }
}

/// Says of a table or a list that was written as something else which it is and how it is written.
fn misshapen(
    message: &str,
    key: &str,
    is_repeated: bool,
) -> Option<(String, &'static str, String)> {
    if let (true, "manager" | "heartbeats" | "failover" | "limits") = (is_repeated, key) {
        let what = "it is one table, with one bracket on either side";
        return Some((key.to_owned(), what, format!("[{key}]")));
    }
    let given = message.strip_prefix("invalid type: ")?;
    let expected = given.split_once(", expected ")?.1;
    let (key, what, expected) = match (expected, key) {
        ("a sequence", "service") => (
            key,
            "services are a list: each has its table with two brackets on either side",
            "[[service]]",
        ),
        // In a list of many lines the key stands further up.
        ("struct WorkerTable", _) | ("a sequence", "service.workers") => (
            "service.workers",
            "a worker is a name with an address",
            r#"workers = [{ name = "worker1", address = "192.168.56.103:8081" }]"#,
        ),
        (_, "service.auto_join") => (
            key,
            "who may join is told by networks and a port",
            r#"auto_join = { networks = ["192.168.56.0/24"], port = 8081 }"#,
        ),
        _ => return None,
    };
    Some((key.to_owned(), what, expected.to_owned()))
}

/// Takes apart what serde says of a field it does not know.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let quoted = message.strip_prefix("unknown field ")?;
    let mut names = quoted.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    Some((unknown, names.collect()))
}

/// Returns the known word that a person most probably meant.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = plain(word);
    // A word cut short, as least_conn.
    let mut begun = known.iter().filter(|it| plain(it).starts_with(&word));
    if let (Some(only), None) = (begun.next(), begun.next())
        && word.len() >= 3
    {
        return Some(*only);
    }
    let distance = |candidate: &str| strsim::damerau_levenshtein(&word, &plain(candidate));
    let nearest = known.iter().min_by_key(|candidate| distance(candidate))?;
    // Half the word may be wrong, no more.
    (distance(nearest) <= word.chars().count().div_ceil(2)).then_some(*nearest)
}

/// A word without what is easily written otherwise.
fn plain(word: &str) -> String {
    let letters = word.chars().filter(|it| !matches!(it, '_' | '-' | ' '));
    letters.flat_map(char::to_lowercase).collect()
}

/// Returns the `table.key` that a line of the text sets.
fn key_at(text: &str, line: usize) -> String {
    let mut before = text.lines().take(line).collect::<Vec<_>>();
    let Some(key) = before
        .pop()
        .map(|line| line.split('=').next().unwrap_or(""))
    else {
        return String::new();
    };
    let key = key.trim();
    let table = before
        .iter()
        .rev()
        .find_map(|line| Some(line.trim().strip_prefix('[')?.trim_matches(['[', ']'])));
    match table {
        Some(table) if !key.is_empty() && !key.starts_with('[') => format!("{table}.{key}"),
        _ => key.trim_matches(['[', ']']).to_owned(),
    }
}
