//! The declaration of a configuration key.

/// A key's declaration without its type, kind and default.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyDeclaration {
    pub name: &'static str,
    /// Lines of the example file.
    pub doc: &'static [&'static str],
    pub reload: ReloadClass,
    pub option: Option<CommandLineOption>,
    /// The value in the example file, as TOML, if it is not the default.
    pub example: Option<&'static str>,
    /// The file must have it. The default replaces a missing value only until validation ends.
    pub is_required: bool,
}

/// The option of the command line that overrides the file.
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
pub(super) enum ReloadClass {
    Live,
    /// After a restart of the manager.
    Restart,
    /// After `memlb unload`: the maps depend on it.
    Unload,
}

impl KeyDeclaration {
    pub const fn new(
        name: &'static str,
        doc: &'static [&'static str],
        reload: ReloadClass,
    ) -> Self {
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
