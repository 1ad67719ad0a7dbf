//! Runs the commands of a document as its reader does.

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use memlb_tests::{
    Process,
    cluster::{BINARY, binary},
    command::output,
    document::{Block, XTASK},
};
use tempfile::TempDir;

use super::{
    location::location_of,
    treatment::{Treatment, treatment_of},
};

/// How long a command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a person would put in place of words in capitals.
const FILLED_IN: &[(&str, &str)] = &[
    ("CLIENT[:PORT]", "192.168.56.10:4711"),
    ("CLIENT", "192.168.56.10"),
    ("SHELL", "bash"),
    ("SERVICE=PORT", "192.168.56.101:80=8081"),
];

/// What a shell ends with after Ctrl-C.
const INTERRUPTED: i32 = 130;

pub struct CommandRunner {
    /// Where commands are typed.
    directory: PathBuf,
    /// The programs that documents name, a `.curlrc`, and what the terminal shows.
    tools: TempDir,
}

impl CommandRunner {
    pub fn new(directory: PathBuf) -> Self {
        let tools = tempfile::tempdir().unwrap();
        symlink(
            binary().unwrap().canonicalize().unwrap(),
            tools.path().join("memlb"),
        )
        .unwrap();
        let cargo = tools.path().join("cargo");
        let xtask = xtask();
        let benchmarks = built(&xtask.with_file_name("memlb-benchmarks"));
        let (xtask, benchmarks) = (xtask.display(), benchmarks.display());
        fs::write(
            &cargo,
            format!(
                "#!/bin/sh
case $1 in
xtask) shift; exec {xtask} \"$@\" ;;
# How xtask starts the benchmarks.
run) while test \"$1\" != --; do shift; done; shift; exec {benchmarks} \"$@\" ;;
esac
exit 1
"
            ),
        )
        .unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        // A page that is not there is a failure here.
        fs::write(tools.path().join(".curlrc"), "fail\n").unwrap();
        Self { directory, tools }
    }

    /// Makes `command` find what documents name.
    pub fn shell(&self, mut command: Command) -> Command {
        let path = env::var_os("PATH").unwrap_or_default();
        let places = [self.tools.path().into()]
            .into_iter()
            .chain(env::split_paths(&path));
        command
            .current_dir(&self.directory)
            .env("PATH", env::join_paths(places).unwrap())
            .env("HOME", self.tools.path())
            // Such as the one that started the tests.
            .env_remove("CARGO")
            // Content with a file that can be edited.
            .env("EDITOR", "test -w")
            .env("TERM", "xterm-256color")
            .env(BINARY, binary().unwrap().canonicalize().unwrap());
        command
    }

    /// Types the commands of a block one after the other on a machine where `start` starts programs.
    ///
    /// # Panics
    /// When one fails, does not end, or does not show what it should.
    pub fn run_all(&self, block: &Block, start: impl Fn(&Path) -> Command) {
        // What a shell keeps for the commands that follow.
        let mut kept = String::new();
        for command in block.commands().unwrap() {
            if let Treatment::NotHere { .. } = treatment_of(location_of(block), &command) {
                continue;
            }
            let script = format!("{kept}{command}");
            self.run_one(block, &command, &script, &start);
            if command.starts_with("cd ") || is_assignment(&command) {
                kept = script;
            }
        }
    }

    fn run_one(
        &self,
        block: &Block,
        command: &str,
        script: &str,
        start: impl Fn(&Path) -> Command,
    ) {
        let keyboard = self.tools.path().join("keyboard");
        output(Command::new("mkfifo").arg(&keyboard)).unwrap();
        // Open for both, so that neither end waits for the other.
        let mut keys = File::options()
            .read(true)
            .write(true)
            .open(&keyboard)
            .unwrap();
        let mut terminal = self.shell(start(Path::new("sh")));
        terminal
            .args([
                "-c",
                "exec script --quiet --flush --return --command \"$1\" /dev/null <\"$2\"",
                "sh",
            ])
            .arg("stty cols 150 rows 50; exec bash -eo pipefail -c \"$SCRIPT\"")
            .arg(&keyboard)
            .env("SCRIPT", script)
            .env("SHELL", "/bin/sh");
        let screen = self.tools.path().join("screen");
        let what = format!("{}: `{}`", block.place, command.trim_end());
        let mut running = Process::start(&what, &mut terminal, &screen).unwrap();
        let mut allowed = vec![0];
        if let Treatment::GoesOn { shows } = treatment_of(location_of(block), command) {
            running.wait_for_log(PATIENCE, shows).unwrap();
            keys.write_all(b"\x03").unwrap();
            allowed.push(INTERRUPTED);
        }
        let ended = running.wait(PATIENCE);
        let ended = ended.unwrap_or_else(|error| panic!("{error}; it shows:\n{}", running.log()));
        let status = ended.code().unwrap_or(-1);
        assert!(
            allowed.contains(&status),
            "{what} ended with {ended} and showed:\n{}",
            running.log()
        );
        fs::remove_file(keyboard).unwrap();
    }

    /// Has the program that `text` begins with say whether verb and options are right, without running it.
    ///
    /// # Panics
    /// When they are not.
    pub fn check_usage(&self, place: &str, text: &str) {
        let mut text = text.trim_end().to_owned();
        for (word, filled_in) in FILLED_IN {
            text = text.replace(word, filled_in);
        }
        let script = if text.starts_with("memlb ")
            || text == "cargo xtask"
            || text.starts_with("cargo xtask ")
        {
            text = text.split(" #").next().unwrap().trim_end().to_owned();
            match text.split_once(" -- ") {
                Some(("cargo xtask run", manager)) => {
                    format!("cargo xtask run --help; memlb manager {manager} --help")
                }
                _ => format!("{text} --help"),
            }
        } else if let Some(arguments) = text.strip_prefix("ssh ") {
            format!("ssh -G {arguments}")
        } else {
            return;
        };
        let mut bash = self.shell(Command::new("bash"));
        let understood = output(bash.args(["-ec", &script]));
        understood.unwrap_or_else(|error| panic!("{place}: {error:#}"));
    }
}

fn xtask() -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/xtask");
    built(&env::var_os(XTASK).map_or(usual, PathBuf::from))
}

fn built(program: &Path) -> PathBuf {
    assert!(
        program.is_file(),
        "there is no {}: build it with `cargo build`",
        program.display()
    );
    program.to_owned()
}

fn is_assignment(command: &str) -> bool {
    let (name, _) = command.split_once('=').unwrap_or_default();
    !name.is_empty()
        && name
            .bytes()
            .all(|it| it.is_ascii_alphanumeric() || it == b'_')
}
