//! Reads single values, remembers where each came from, and collects what is wrong.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use crate::config::Config;
use crate::config::error::{ConfigError, Origin, Problem, ProblemKind};
use crate::config::file::{self, Given, Scalar, nearest};
use crate::config::values::{self, BadValue, show_duration};

pub(super) struct Reader<'a> {
    text: &'a str,
    name: &'a str,
    problems: Vec<Problem>,
}

/// Where a setting stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub key: String,
    pub origin: Origin,
}

/// A value that was read, or the default in its place if it was bad.
#[derive(Debug, Clone)]
pub(super) struct Checked<T> {
    pub value: T,
    pub place: Place,
    bad: bool,
}

impl<T: Copy> Checked<T> {
    /// Returns the value unless it was refused already: one mistake is reported once.
    pub fn good(&self) -> Option<T> {
        (!self.bad).then_some(self.value)
    }
}

/// A value as written, and where.
pub(super) struct Setting<T> {
    value: Option<T>,
    source: Source,
}

enum Source {
    Flag(&'static str),
    Byte(usize),
    Absent,
}

impl<T> Setting<T> {
    pub fn file<S: Into<Setting<T>>>(given: S) -> Self {
        given.into()
    }

    /// Takes the command line's value, or else the file's.
    pub fn flag_or_file<S: Into<Self>>(flag: &'static str, option: &Option<T>, given: S) -> Self
    where
        T: Clone,
    {
        match option {
            Some(value) => Self {
                value: Some(value.clone()),
                source: Source::Flag(flag),
            },
            None => given.into(),
        }
    }
}

impl From<Given<String>> for Setting<String> {
    fn from(given: Given<String>) -> Self {
        Self::spanned(given, |text| text)
    }
}

impl From<Given<Scalar>> for Setting<String> {
    fn from(given: Given<Scalar>) -> Self {
        Self::spanned(given, Scalar::into_text)
    }
}

impl<T> Setting<T> {
    pub fn spanned<S>(given: Given<S>, convert: impl FnOnce(S) -> T) -> Self {
        match given {
            Some(spanned) => Self {
                source: Source::Byte(spanned.span().start),
                value: Some(convert(spanned.into_inner())),
            },
            None => Self {
                value: None,
                source: Source::Absent,
            },
        }
    }
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str, name: &'a str) -> Self {
        Self {
            text,
            name,
            problems: Vec::new(),
        }
    }

    pub fn finish(self, config: Config) -> Result<Config, ConfigError> {
        if self.problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError {
                problems: self.problems,
            })
        }
    }

    pub fn refuse(
        &mut self,
        place: &Place,
        kind: ProblemKind,
        what: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            kind,
            origin: place.origin.clone(),
            key: place.key.clone(),
            what: what.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        });
    }

    /// Reads a duration above zero.
    pub fn duration(
        &mut self,
        key: &str,
        setting: Setting<String>,
        default: Duration,
        longest: Duration,
    ) -> Checked<Duration> {
        let read = self.duration_or_none(key, setting, default, longest);
        if read.good() != Some(Duration::ZERO) {
            return read;
        }
        self.refuse(
            &read.place,
            ProblemKind::ZeroInterval,
            "the time is zero",
            format!("more than 0, at most {}", show_duration(longest)),
            format!("the default is {}", show_duration(default)),
        );
        Checked { bad: true, ..read }
    }

    /// Reads a duration that may be zero.
    pub fn duration_or_none(
        &mut self,
        key: &str,
        setting: Setting<String>,
        default: Duration,
        longest: Duration,
    ) -> Checked<Duration> {
        let read = self.parse(key, setting, values::duration, default);
        let Some(long) = read.good().filter(|it| *it > longest) else {
            return read;
        };
        self.refuse(
            &read.place,
            ProblemKind::OutOfRange,
            format!("{} is too long", show_duration(long)),
            format!("at most {}", show_duration(longest)),
            format!("the default is {}", show_duration(default)),
        );
        Checked { bad: true, ..read }
    }

    /// Reads a whole number.
    pub fn integer(
        &mut self,
        key: &str,
        given: Given<i64>,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> Checked<u32> {
        let setting = Setting::spanned(given, |number| number);
        let place = self.place(key, &setting.source);
        let Some(number) = setting.value else {
            return Checked {
                value: default,
                place,
                bad: false,
            };
        };
        let value = u32::try_from(number)
            .ok()
            .filter(|number| range.contains(number));
        if value.is_none() {
            self.refuse(
                &place,
                ProblemKind::OutOfRange,
                format!("{number} is out of range"),
                format!("from {} to {}", range.start(), range.end()),
                format!("the default is {default}"),
            );
        }
        Checked {
            value: value.unwrap_or(default),
            place,
            bad: value.is_none(),
        }
    }

    /// Reads one of a few words; `planned` ones are known but not built yet.
    pub fn choice<T: Copy>(
        &mut self,
        key: &str,
        setting: Setting<String>,
        words: &[(&str, T)],
        planned: &[&str],
    ) -> Option<T> {
        let place = self.place(key, &setting.source);
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let Some(text) = setting.value else {
            return words.first().map(|(_, value)| *value);
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let (kind, what) = match planned.contains(&text.as_str()) {
            true => (
                ProblemKind::NotSupportedYet,
                format!("{text:?} is not supported by this version yet"),
            ),
            false => (ProblemKind::UnknownChoice, format!("{text:?} is not known")),
        };
        let remedy = match nearest(&text, &known) {
            Some(word) if kind == ProblemKind::UnknownChoice => format!("did you mean {word:?}?"),
            _ => "write one that is known; `memlb check --example` explains them".to_owned(),
        };
        self.refuse(&place, kind, what, one_of(&known), remedy);
        None
    }

    /// Reads an address that must be given.
    pub fn address(
        &mut self,
        key: &str,
        whole: &Place,
        given: Given<String>,
        example: &str,
    ) -> Option<Located> {
        let (text, place) = self.required(key, whole, given, example)?;
        match values::address(&text) {
            Ok(address) => Some(Located { address, place }),
            Err(bad) => {
                self.refuse_value(&place, bad);
                None
            }
        }
    }

    /// Reads a text that must be given, as part of the table at `whole`.
    pub fn required(
        &mut self,
        key: &str,
        whole: &Place,
        given: Given<String>,
        example: &str,
    ) -> Option<(String, Place)> {
        match given {
            Some(spanned) => {
                let place = self.at(key, &spanned);
                Some((spanned.into_inner(), place))
            }
            None => {
                let name = key.rsplit('.').next().unwrap_or(key);
                self.refuse(
                    &Place {
                        key: key.to_owned(),
                        origin: whole.origin.clone(),
                    },
                    ProblemKind::Missing,
                    "the setting is missing",
                    format!("{name} = {example}"),
                    "add it to this table",
                );
                None
            }
        }
    }

    pub fn parse<T>(
        &mut self,
        key: &str,
        setting: Setting<String>,
        parse: impl FnOnce(&str) -> Result<T, BadValue>,
        default: T,
    ) -> Checked<T> {
        let place = self.place(key, &setting.source);
        let (value, bad) = match setting.value.as_deref().map(parse) {
            None => (default, false),
            Some(Ok(value)) => (value, false),
            Some(Err(bad)) => {
                self.refuse_value(&place, bad);
                (default, true)
            }
        };
        Checked { value, place, bad }
    }

    /// Refuses a path that would depend on where the manager is started.
    pub fn absolute(&mut self, path: &Path, place: &Place, expected: &str) {
        if !path.is_absolute() {
            self.refuse(
                place,
                ProblemKind::BadPath,
                format!("{:?} is not an absolute path", path.display().to_string()),
                expected,
                "begin the path with /",
            );
        }
    }

    /// Takes a setting apart without reading its value.
    pub fn take<T>(&self, key: &str, setting: Setting<T>) -> (Option<T>, Place) {
        let place = self.place(key, &setting.source);
        (setting.value, place)
    }

    pub fn place_of<T>(&self, key: &str, setting: &Setting<T>) -> Place {
        self.place(key, &setting.source)
    }

    pub fn at<T>(&self, key: &str, spanned: &Spanned<T>) -> Place {
        self.place(key, &Source::Byte(spanned.span().start))
    }

    pub fn nowhere(&self, key: &str) -> Place {
        self.place(key, &Source::Absent)
    }

    fn refuse_value(&mut self, place: &Place, bad: BadValue) {
        self.refuse(place, bad.kind, bad.what, bad.expected, bad.remedy);
    }

    fn place(&self, key: &str, source: &Source) -> Place {
        let file = self.name.to_owned();
        Place {
            key: key.to_owned(),
            origin: match source {
                Source::Flag(flag) => Origin::Flag(flag),
                Source::Byte(byte) => Origin::Line {
                    file,
                    line: file::line(self.text, *byte),
                },
                Source::Absent => Origin::File { file },
            },
        }
    }
}

/// An address and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub address: SocketAddr,
    pub place: Place,
}

fn one_of(words: &[&str]) -> String {
    match words {
        [word] => format!("{word:?}"),
        words => {
            let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            format!("one of {}", quoted.join(", "))
        }
    }
}
