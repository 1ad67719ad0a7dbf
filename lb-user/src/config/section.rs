//! Reads the tables of the file: the trait of a table, and the macro that declares one.

use std::collections::BTreeSet;

use super::document::{RawTable, RawValue, ValueSource};
use super::error::{Origin, ProblemKind};
use super::key::KeyDeclaration;
use super::kinds::{Input, Kind};
use super::validator::{Validator, display_path};

pub(super) const SERVICE: &str = "service";
pub(super) const PEER: &str = "peer";
pub(super) const TABLES: [&str; 6] = ["manager", PEER, "heartbeats", "failover", "limits", SERVICE];

/// The tables that may be repeated, each with a name.
pub(super) const REPEATED: [&str; 2] = [PEER, SERVICE];

/// The remedy for a value that is not the expected table or list.
pub(super) const REWRITE: &str =
    "write it in the expected form; `memlb check --example` prints a whole file";

/// A key with its default as TOML, and its bounds as a sentence.
#[derive(Debug)]
pub(super) struct KeyDescription {
    pub key: KeyDeclaration,
    pub default: String,
    pub bounds: Option<String>,
}

/// A key whose value changed, with both values as the file would have them.
#[derive(Debug)]
pub(super) struct Difference {
    pub key: KeyDeclaration,
    pub old: String,
    pub new: String,
}

/// A table of the configuration file.
pub(super) trait Section: Sized {
    const ABOUT: &'static [&'static str];

    fn read(fields: &mut TableReader<'_, '_>) -> Self;
    fn describe() -> Vec<KeyDescription>;
    fn differences(&self, new: &Self) -> Vec<Difference>;
}

/// Reads a table, also one that the file lacks: the command line may set its keys.
pub(super) fn read_table<'a, T: Section>(
    validator: &mut Validator<'a>,
    path: &str,
    given: Option<RawValue<'a>>,
) -> T {
    let origin = validator.record_given(path, given);
    let mut values = match given.map(RawValue::table) {
        Some(Ok(values)) => values,
        None => RawTable::new(),
        Some(Err(_)) => {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "this must be one table, with single brackets",
                format!("[{path}]"),
                REWRITE,
            );
            RawTable::new()
        }
    };
    apply_assignments(validator, path, &mut values);
    let names: Vec<&'static str> = T::describe().iter().map(|it| it.key.name).collect();
    let misspelt = validator.report_unknown(path, &values, &names);
    T::read(&mut TableReader {
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

/// Replaces values of the file by those of `--set`.
fn apply_assignments<'a>(validator: &Validator<'a>, path: &str, values: &mut RawTable<'a>) {
    let name = values.get("name").and_then(|name| name.text().ok());
    let table = match (path.split_once('.'), name) {
        (Some((list, number)), Some(name)) if !number.contains('.') => format!("{list}.{name}"),
        _ => path.to_owned(),
    };
    for it in validator.assignments.iter().filter(|it| it.table == table) {
        values.insert(it.key, RawValue::toml(&it.value, ValueSource::Set(it.set)));
    }
}

/// Reads the keys of one table.
pub(super) struct TableReader<'v, 'a> {
    path: &'v str,
    values: RawTable<'a>,
    origin: Origin,
    misspelt: BTreeSet<&'static str>,
    validator: &'v mut Validator<'a>,
}

impl<'a> TableReader<'_, 'a> {
    /// Reads the value of a key from the command line, else from the file, else returns the default.
    pub fn read<K: Kind>(&mut self, key: KeyDeclaration, kind: &K, default: K::Value) -> K::Value {
        let path = format!("{}.{}", self.path, key.name);
        let option = key.option.and_then(|option| {
            let values = self.validator.overrides.values(&display_path(&path))?;
            Some(RawValue::option(values, option.flag))
        });
        let Some(given) = option.or_else(|| self.values.get(key.name).copied()) else {
            self.absent(key, &path);
            return default;
        };
        self.validator.record_origin(&path, given.source.origin());
        let value = kind.read(&mut Input {
            given,
            path: &path,
            validator: self.validator,
        });
        value.unwrap_or_else(|| {
            self.validator.advise_default(&kind.to_toml(&default));
            default
        })
    }

    fn absent(&mut self, key: KeyDeclaration, path: &str) {
        // The line identifies a table that may be repeated.
        let is_repeated = REPEATED.iter().any(|list| self.path.starts_with(list));
        let origin = match is_repeated || key.is_required {
            true => self.origin.clone(),
            false => self.validator.absent_origin(),
        };
        self.validator.record_origin(path, origin);
        if !key.is_required {
            return;
        }
        if self.misspelt.contains(key.name) {
            // `report_unknown` has reported the misspelt key.
            self.validator.remove(path);
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
/// differs. The kind parses, bounds and shows its value; the attributes are the methods of [`KeyDeclaration`]. The doc
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

            fn read(fields: &mut TableReader<'_, '_>) -> Self {
                Self {
                    $($field: fields.read(
                        sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                        &$kind,
                        $default,
                    ),)+
                }
            }

            fn describe() -> Vec<KeyDescription> {
                vec![$(KeyDescription {
                    key: sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                    default: $kind.to_toml(&$default),
                    bounds: $kind.bounds(),
                },)+]
            }

            fn differences(&self, new: &Self) -> Vec<Difference> {
                let mut differences = Vec::new();
                $(if self.$field != new.$field {
                    differences.push(Difference {
                        key: sections!(@key $field $(as $name)?, [$($doc),+], $reload $(, $attribute($($argument),+))*),
                        old: $kind.to_toml(&self.$field),
                        new: $kind.to_toml(&new.$field),
                    });
                })+
                differences
            }
        }
    )+};
    (@key $field:ident, [$($doc:literal),+], $reload:ident $(, $attribute:ident($($argument:expr),+))*) => {
        const { KeyDeclaration::new(stringify!($field), &[$($doc),+], ReloadClass::$reload)$(.$attribute($($argument),+))* }
    };
    (@key $field:ident as $name:literal, [$($doc:literal),+], $reload:ident $(, $attribute:ident($($argument:expr),+))*) => {
        const { KeyDeclaration::new($name, &[$($doc),+], ReloadClass::$reload)$(.$attribute($($argument),+))* }
    };
}
pub(super) use sections;
