//! What is declared of a configuration key, and the macro that declares it.

use super::fields::Fields;

/// What is declared of a key, beside its type, kind and default.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub name: &'static str,
    /// Lines of the example file.
    pub doc: &'static [&'static str],
    pub reload: Reload,
    pub option: Option<CommandLineOption>,
    /// What the example file has, as TOML, where that is not the default.
    pub example: Option<&'static str>,
    /// The file must have it; the default only stands in for a missing value until all is validated.
    pub is_required: bool,
}

/// The option of the command line that goes before the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommandLineOption {
    /// With its dashes.
    pub flag: &'static str,
    pub value_name: &'static str,
    pub help: &'static str,
    pub form: OptionForm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionForm {
    Value,
    /// May be repeated.
    List,
    /// Takes no value.
    Switch,
}

/// Whether a running manager applies a changed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reload {
    Live,
    /// After a restart of the manager.
    Restart,
    /// The maps are made with it.
    Unload,
}

impl Key {
    pub const fn new(name: &'static str, doc: &'static [&'static str], reload: Reload) -> Self {
        Self {
            name,
            doc,
            reload,
            option: None,
            example: None,
            is_required: false,
        }
    }

    pub const fn example(self, toml: &'static str) -> Self {
        Self {
            example: Some(toml),
            ..self
        }
    }

    /// A required key needs an example.
    pub const fn required(self, example: &'static str) -> Self {
        Self {
            is_required: true,
            ..self.example(example)
        }
    }

    pub const fn option(
        self,
        flag: &'static str,
        value_name: &'static str,
        help: &'static str,
    ) -> Self {
        self.with_option(flag, value_name, help, OptionForm::Value)
    }

    pub const fn list_option(
        self,
        flag: &'static str,
        value_name: &'static str,
        help: &'static str,
    ) -> Self {
        self.with_option(flag, value_name, help, OptionForm::List)
    }

    pub const fn switch(self, flag: &'static str, help: &'static str) -> Self {
        self.with_option(flag, "", help, OptionForm::Switch)
    }

    const fn with_option(
        self,
        flag: &'static str,
        value_name: &'static str,
        help: &'static str,
        form: OptionForm,
    ) -> Self {
        Self {
            option: Some(CommandLineOption {
                flag,
                value_name,
                help,
                form,
            }),
            ..self
        }
    }
}

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

/// Declares tables. A key is declared as
/// `field: Type = default, kind, Reload, attribute(…)…;` with `field as "name"` where its name in the file
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
        const { Key::new(stringify!($field), &[$($doc),+], Reload::$reload)$(.$attribute($($argument),+))* }
    };
    (@key $field:ident as $name:literal, [$($doc:literal),+], $reload:ident $(, $attribute:ident($($argument:expr),+))*) => {
        const { Key::new($name, &[$($doc),+], Reload::$reload)$(.$attribute($($argument),+))* }
    };
}
pub(super) use sections;
