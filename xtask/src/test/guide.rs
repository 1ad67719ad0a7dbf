//! The commands of docs/installing.md, by which the package is tested.

use anyhow::{Context, Result, bail};
use memlb_tests::document::Document;

use crate::workspace::root;

/// The commands, in the order of the document.
pub struct Guide {
    /// For every machine.
    pub install: Vec<String>,
    pub start_manager: Vec<String>,
    pub start_agent: Vec<String>,
    pub upgrade: Vec<String>,
    pub remove: Vec<String>,
    pub purge: Vec<String>,
}

impl Guide {
    /// # Errors
    /// The document has other blocks than expected.
    pub fn read() -> Result<Self> {
        let document = Document::read(root(), "docs/installing.md")?;
        // Blocks with a remark are for other machines.
        let blocks = document.blocks.iter().filter(|it| it.remark.is_none());
        let blocks: Vec<_> = blocks.filter(|it| it.language == "sh").collect();
        let sections: Vec<&str> = blocks.iter().map(|it| it.section.as_str()).collect();
        let commands: Result<Vec<_>> = blocks.iter().map(|it| it.commands()).collect();
        let commands: [Vec<String>; 7] = match commands?.try_into() {
            Ok(commands) if sections == SECTIONS => commands,
            _ => bail!(
                "docs/installing.md has blocks in the sections {sections:?}, not in {SECTIONS:?}"
            ),
        };
        let [
            install,
            configure,
            inspect,
            mut start_agent,
            upgrade,
            remove,
            purge,
        ] = commands;
        if start_agent.is_empty() || install != [start_agent.remove(0)] {
            bail!("docs/installing.md: the first command of managers and workers differs");
        }
        Ok(Self {
            install,
            start_manager: [configure, inspect].concat(),
            start_agent,
            upgrade,
            remove,
            purge,
        })
    }

    /// Returns the file name of the package in the command for the upgrade.
    pub fn next_package(&self) -> Result<&str> {
        let command = self
            .upgrade
            .first()
            .context("the guide has no command to upgrade")?;
        let (_, package) = command
            .trim()
            .split_once("./")
            .context("a package's file")?;
        Ok(package)
    }
}

const SECTIONS: [&str; 7] = [
    "The manager",
    "The manager",
    "The manager",
    "The workers",
    "Upgrading",
    "Removing",
    "Removing",
];
