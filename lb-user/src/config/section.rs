//! Reads the tables of the file: the trait of a table, and the macro that declares one.

use std::collections::BTreeSet;

use super::REPEATED;
use super::document::{RawTable, RawValue, Source};
use super::error::{Origin, ProblemKind};
use super::key::Key;
use super::kinds::{Input, Kind};
use super::validator::{Validator, public};

/// The remedy for a table or a list that was written as something else.
pub(super) const REWRITE: &str = "write it so; `memlb check --example` prints a whole file";

/// A key with its default as TOML, and its bounds as a sentence.
#[derive(Debug)]
pub(super) struct Described {
    pub key: Key,
    pub default: String,
    pub bounds: Option<String>,
}

/// A key whose value changed, with both values as the file would have them.
#[derive(Debug)]
pub(super) struct Difference {
    pub key: Key,
    pub old: String,
    pub new: String,
}

/// A table of the configuration file.
pub(super) trait Section: Sized {
    const ABOUT: &'static [&'static str];

    fn read(fields: &mut Fields<'_, '_>) -> Self;
    fn describe() -> Vec<Described>;
    fn differences(&self, new: &Self) -> Vec<Difference>;
}

/// Reads a table, absent ones too: the command line may set their keys.
pub(super) fn read_table<'a, T: Section>(
    validator: &mut Validator<'a>,
    path: &str,
    given: Option<RawValue<'a>>,
) -> T {
    let origin = given.map_or(validator.absent(), |given| given.source.origin());
    validator.note(path, origin.clone());
    let mut values = match given.map(RawValue::table) {
        Some(Ok(values)) => values,
        None => RawTable::new(),
        Some(Err(_)) => {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "it is one table, with one bracket on either side",
                format!("[{path}]"),
                REWRITE,
            );
            RawTable::new()
        }
    };
    assign(validator, path, &mut values);
    let names: Vec<&'static str> = T::describe().iter().map(|it| it.key.name).collect();
    let misspelt = validator.report_unknown(path, &values, &names);
    T::read(&mut Fields {
        path,
        values,
        origin,
        misspelt,
        validator,
    })
}

/// Reads a list of tables; `None` if the value is something else.
pub(super) fn read_tables<'a, T: Section>(
    validator: &mut Validator<'a>,
    path: &str,
    given: RawValue<'a>,
) -> Option<Vec<T>> {
    let tables = given.list().ok()?;
    if tables.iter().any(|it| it.table().is_err()) {
        return None;
    }
    let table = |(number, table)| read_table(validator, &format!("{path}.{number}"), Some(table));
    Some(tables.into_iter().enumerate().map(table).collect())
}

/// Lays the values of `--set` over those of the file.
fn assign<'a>(validator: &Validator<'a>, path: &str, values: &mut RawTable<'a>) {
    let name = values.get("name").and_then(|name| name.text().ok());
    let table = match (path.split_once('.'), name) {
        (Some((list, number)), Some(name)) if !number.contains('.') => format!("{list}.{name}"),
        _ => path.to_owned(),
    };
    for it in validator.assignments.iter().filter(|it| it.table == table) {
        values.insert(it.key, RawValue::toml(&it.value, Source::Set(it.set)));
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
        let value = kind.read(&mut Input {
            given,
            path: &path,
            validator: self.validator,
        });
        value.unwrap_or_else(|| {
            self.validator.advise_default(&kind.show(&default));
            default
        })
    }

    fn absent(&mut self, key: Key, path: &str) {
        // Of a table that may be repeated, the line says which one it is.
        let is_repeated = REPEATED.iter().any(|list| self.path.starts_with(list));
        let origin = match is_repeated || key.is_required {
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

/// Declares tables. A key is declared as
/// `field: Type = default, kind, ReloadClass, attribute(…)…;` with `field as "name"` where its name in the file
/// differs. The kind parses, bounds and shows its value; the attributes are the methods of [`Key`]. The doc
/// comment is what the example file says.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        pub struct $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident $(as $name:literal)?: $type:ty = $default:expr, $kind:expr, $reload:ident
                $(, $attribute:ident($($argument:expr),+))*;
            )+
        }
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $Section {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Section for $Section {
            const ABOUT: &'static [&'static str] = &[$($about),+];

            fn read(fields: &mut Fields<'_, '_>) -> Self {
                Self {
                    $($field: fields.read(
                        sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                        &$kind,
                        $default,
                    ),)+
                }
            }

            fn describe() -> Vec<Described> {
                vec![$(Described {
                    key: sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                    default: $kind.show(&$default),
                    bounds: $kind.bounds(),
                },)+]
            }

            fn differences(&self, new: &Self) -> Vec<Difference> {
                let mut differences = Vec::new();
                $(if self.$field != new.$field {
                    differences.push(Difference {
                        key: sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                        old: $kind.show(&self.$field),
                        new: $kind.show(&new.$field),
                    });
                })+
                differences
            }
        }
    )+};
    (@key $field:ident, [$($doc:literal),+], $reload:ident $(, $attribute:ident($($argument:expr),+))*) => {
        const { Key::new(stringify!($field), &[$($doc),+], ReloadClass::$reload)$(.$attribute($($argument),+))* }
    };
    (@key $field:ident as $name:literal, [$($doc:literal),+], $reload:ident $(, $attribute:ident($($argument:expr),+))*) => {
        const { Key::new($name, &[$($doc),+], ReloadClass::$reload)$(.$attribute($($argument),+))* }
    };
}
pub(super) use sections;
