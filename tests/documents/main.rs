//! The README and the documents beside it: each command works on its machine, or is at least parsed, and the
//! configurations are valid.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod command_runner;
mod lab;
mod location;
mod mounts;
mod treatment;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use memlb_tests::{cluster::binary, command::output, document::Document, root_test};

use self::{
    command_runner::CommandRunner,
    lab::Lab,
    location::{Location, location_of},
    mounts::with_private_mounts,
    treatment::{NOT_RUN, Treatment, treatment_of},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Everything that users read.
fn documents() -> Vec<Document> {
    let mut names = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        names.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    for folder in ["ha", "monitoring", "vagrant"] {
        names.push(format!("scripts/{folder}/README.md"));
    }
    names[1..].sort();
    let read = |name: &String| Document::read(&root(), name).unwrap();
    names.iter().map(read).collect()
}

#[test]
fn every_block_has_a_language() {
    for block in documents().iter().flat_map(|it| &it.blocks) {
        let place = &block.place;
        location_of(block);
        match block.language.as_str() {
            "sh" | "console" => assert!(!block.commands().unwrap().is_empty(), "{place}"),
            "json" => assert!(serde_json::from_str::<serde_json::Value>(&block.text).is_ok()),
            "toml" | "ini" => {}
            "text" | "indented" => {
                let is_typed = |line: &str| {
                    let line = line.trim_start_matches(['$', '#', ' ']);
                    line.starts_with("memlb ") || line.starts_with("cargo ")
                };
                let typed = block.text.lines().find(|line| is_typed(line));
                assert_eq!(typed, None, "{place}: a command belongs in ```sh");
            }
            other => panic!("{place}: unknown kind of block: ```{other}"),
        }
    }
}

#[test]
fn configurations_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    for block in documents().iter().flat_map(|it| &it.blocks) {
        if block.language == "toml" {
            let file = directory.path().join("memlb.toml");
            // A part of a configuration is about a service; a manager needs an interface, too.
            let rest = match block.text.contains("[manager]") {
                true => "",
                false => "[manager]\ninterfaces = [\"eth1\"]\n",
            };
            fs::write(&file, format!("{}{rest}", block.text)).unwrap();
            let checked = output(Command::new(binary().unwrap()).arg("check").arg(file));
            checked.unwrap_or_else(|error| panic!("{}: {error:#}", block.place));
            count += 1;
        }
    }
    assert!(count > 1, "there are configurations in the documents");
}

#[test]
fn commands_that_do_not_run_are_parsed() {
    let runner = CommandRunner::new(root());
    let mut seen = Vec::new();
    for document in documents() {
        for block in &document.blocks {
            for command in block.commands().unwrap() {
                if let Treatment::NotHere { because } = treatment_of(location_of(block), &command) {
                    runner.check_usage(&block.place, &command);
                    seen.push(because);
                }
            }
        }
        for span in &document.spans {
            runner.check_usage(&document.name, span);
        }
    }
    for (command, because) in NOT_RUN {
        assert!(
            seen.contains(because),
            "no document says {command} any more"
        );
    }
}

#[root_test]
fn commands_in_the_repository_work() {
    with_private_mounts(|| {
        let runner = CommandRunner::new(root());
        let _down = LabDown(&runner);
        for document in documents() {
            for block in &document.blocks {
                if location_of(block) == Location::Repository {
                    runner.run_all(block, |program| Command::new(program));
                }
            }
        }
    });
}

#[root_test]
fn commands_of_operators_work() {
    with_private_mounts(|| {
        let mut lab = Lab::start();
        for document in documents() {
            // What one block writes, the next may need.
            let home = tempfile::tempdir().unwrap();
            let runner = CommandRunner::new(home.path().into());
            for block in &document.blocks {
                lab.set(location_of(block));
                match location_of(block) {
                    Location::Manager | Location::ManagerAtRest => {
                        runner.run_all(block, |program| lab.on_the_manager(program));
                    }
                    Location::Worker => runner.run_all(block, |program| lab.on_worker1(program)),
                    Location::Repository
                    | Location::Machines
                    | Location::Pair
                    | Location::VirtualBox => {}
                }
            }
        }
    });
}

/// Takes down what a document has started, even where its command for that fails.
struct LabDown<'a>(&'a CommandRunner);

impl Drop for LabDown<'_> {
    fn drop(&mut self) {
        let down = output(
            self.0
                .shell(Command::new("sh"))
                .args(["-c", "cargo xtask lab down"]),
        );
        if let Err(error) = down {
            eprintln!("{error:#}");
        }
    }
}
