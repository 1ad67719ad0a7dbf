//! Values as written in the file or on the command line, each with its origin.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{BadValue, Origin, Problem, ProblemKind};

/// A value as written.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawValue<'a> {
    raw: Raw<'a>,
    pub source: ValueSource<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Raw<'a> {
    Toml(&'a DeValue<'a>),
    Option(&'a [OsString]),
}

/// Where a value was written.
#[derive(Debug, Clone, Copy)]
pub(super) enum ValueSource<'a> {
    /// At a byte of the file.
    File {
        name: &'a str,
        text: &'a str,
        byte: usize,
    },
    /// With `--set`.
    Set(&'a str),
    Option(&'static str),
}

/// The values of a table, by key.
pub(super) type RawTable<'a> = BTreeMap<&'a str, RawValue<'a>>;

impl ValueSource<'_> {
    pub fn origin(self) -> Origin {
        match self {
            Self::File { name, text, byte } => Origin::file(name, Some(line(text, byte))),
            Self::Set(set) => Origin::Set {
                set: set.to_owned(),
            },
            Self::Option(option) => Origin::Flag { option },
        }
    }
}

impl<'a> RawValue<'a> {
    /// A whole file.
    pub fn file(document: &'a Spanned<DeTable<'a>>, name: &'a str, text: &'a str) -> RawTable<'a> {
        values(
            document.get_ref(),
            ValueSource::File {
                name,
                text,
                byte: 0,
            },
        )
    }

    pub fn toml(value: &'a DeValue<'a>, source: ValueSource<'a>) -> Self {
        Self {
            raw: Raw::Toml(value),
            source,
        }
    }

    pub fn option(values: &'a [OsString], flag: &'static str) -> Self {
        Self {
            raw: Raw::Option(values),
            source: ValueSource::Option(flag),
        }
    }

    /// Returns a string.
    pub fn text(self) -> Result<Cow<'a, str>, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::String(text)) => Ok(Cow::Borrowed(text)),
            Raw::Option([text]) => Ok(text.to_string_lossy()),
            _ => Err(self.mistyped("a value in quotes")),
        }
    }

    /// Returns a string, or a bare number, which may lack its unit or quotes.
    pub fn scalar(self) -> Result<Cow<'a, str>, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::Integer(number)) => Ok(Cow::Borrowed(number.as_str())),
            _ => self.text(),
        }
    }

    pub fn path(self) -> Result<PathBuf, BadValue> {
        match self.raw {
            Raw::Option([path]) => Ok(path.into()),
            _ => Ok(PathBuf::from(&*self.text()?)),
        }
    }

    pub fn integer(self) -> Result<i64, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::Integer(number)) => {
                let value = i64::from_str_radix(number.as_str(), number.radix());
                value.map_err(|_| BadValue {
                    kind: ProblemKind::OutOfRange,
                    what: format!("{} is out of range", number.as_str()),
                    expected: "a whole number of 64 bits".into(),
                    remedy: "write a smaller number".to_owned(),
                })
            }
            _ => Err(self.mistyped("a whole number, without quotes")),
        }
    }

    pub fn boolean(self) -> Result<bool, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::Boolean(value)) => Ok(*value),
            Raw::Option(_) => Ok(true),
            Raw::Toml(_) => Err(self.mistyped("true or false, without quotes")),
        }
    }

    pub fn list(self) -> Result<Vec<Self>, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::Array(items)) => Ok(items
                .iter()
                .map(|item| spanned(item, self.source))
                .collect()),
            Raw::Option(texts) => Ok(texts
                .iter()
                .map(|text| Self {
                    raw: Raw::Option(std::slice::from_ref(text)),
                    source: self.source,
                })
                .collect()),
            Raw::Toml(_) => {
                Err(self.mistyped("a list in square brackets, as in [\"one\", \"two\"]"))
            }
        }
    }

    pub fn table(self) -> Result<RawTable<'a>, BadValue> {
        match self.raw {
            Raw::Toml(DeValue::Table(table)) => Ok(values(table, self.source)),
            _ => Err(self.mistyped("a table")),
        }
    }

    fn mistyped(self, expected: &'static str) -> BadValue {
        let found = match self.raw {
            Raw::Option(_) => "more than one value".to_owned(),
            Raw::Toml(DeValue::String(text)) => format!("{text:?} is a string"),
            Raw::Toml(DeValue::Integer(number)) => format!("{} is a whole number", number.as_str()),
            Raw::Toml(DeValue::Float(number)) => format!("{} is a decimal number", number.as_str()),
            Raw::Toml(DeValue::Boolean(value)) => format!("{value} is a boolean"),
            Raw::Toml(DeValue::Datetime(time)) => format!("{time} is a date or a time"),
            Raw::Toml(DeValue::Array(_)) => "this is a list".to_owned(),
            Raw::Toml(DeValue::Table(_)) => "this is a table".to_owned(),
        };
        BadValue {
            kind: ProblemKind::WrongType,
            what: found,
            expected: expected.into(),
            remedy: "compare with the example; `memlb check --example` prints it".to_owned(),
        }
    }
}

fn values<'a>(table: &'a DeTable<'a>, source: ValueSource<'a>) -> RawTable<'a> {
    let value = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
        let key: &Cow<'a, str> = key.get_ref();
        (key.as_ref(), spanned(value, source))
    };
    table.iter().map(value).collect()
}

/// A value within another one.
fn spanned<'a>(value: &'a Spanned<DeValue<'a>>, around: ValueSource<'a>) -> RawValue<'a> {
    let source = match around {
        ValueSource::File { name, text, .. } => ValueSource::File {
            name,
            text,
            byte: value.span().start,
        },
        other => other,
    };
    RawValue::toml(value.get_ref(), source)
}

/// Parses the file's text. Returns what can be parsed, and a problem for each line that is not TOML.
pub(super) fn parse<'a>(text: &'a str, name: &str) -> (Spanned<DeTable<'a>>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let problem = |error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        Problem {
            kind: ProblemKind::Syntax,
            origin: Origin::file(name, Some(line(text, start))),
            key: String::new(),
            what: what(error, text),
            expected: "TOML: tables in brackets, key = value, strings in quotes".to_owned(),
            remedy: "correct this line, then run `memlb check FILE`".to_owned(),
        }
    };
    // One mistake may cause several errors in its line.
    let mut problems: Vec<Problem> = errors.iter().map(problem).collect();
    problems.dedup_by(|next, first| next.origin == first.origin);
    (table, problems)
}

/// Returns the parser's message, which has several lines, in one. That of a duplicate key does not name the key.
fn what(error: &toml::de::Error, text: &str) -> String {
    let key = error.span().and_then(|span| text.get(span));
    match key {
        Some(key) if error.message() == "duplicate key" => format!("{key} is set a second time"),
        _ => error.message().replace('\n', ", "),
    }
}

/// Returns the line, counted from 1, in which a byte of the text is.
fn line(text: &str, byte: usize) -> usize {
    1 + text
        .bytes()
        .take(byte)
        .filter(|&byte| byte == b'\n')
        .count()
}
