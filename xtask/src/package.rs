//! Makes the Debian package: what cargo-deb cannot make by itself, then cargo-deb.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::{output, run};

use crate::{
    build, setup, test,
    workspace::{cargo, cargo_bin, find_program, root, say, target},
};

/// `.invalid` is nobody's (RFC 2606).
const NOBODY: &str = "Local build of memlb <nobody@memlb.invalid>";

const CARGO_DEB_VERSION: &str = "3.8.0";

/// Builds memlb and its package, and tries that if it shall.
pub fn make(check: bool) -> Result<()> {
    let memlb = build::memlb()?;
    let package = package_of(&memlb)?;
    say(format!("made {}", package.display()));
    if check {
        test::check_package(&package)?;
    }
    Ok(())
}

/// Makes the package of the `memlb` that cargo has built.
pub fn package_of(memlb: &Path) -> Result<PathBuf> {
    setup::for_packaging()?;
    make_contents(memlb, &target().join("package"))?;
    // Says nothing but the package's path.
    let package = output(
        cargo()
            .args([
                "deb",
                "--package=lb-user",
                "--no-build",
                "--strip",
                "--quiet",
            ])
            .args(["--maintainer", &maintainer()]),
    )?;
    Ok(package.trim().into())
}

/// Installs cargo-deb where it is missing.
pub fn provide_cargo_deb() -> Result<()> {
    let is_here = |program: PathBuf| {
        output(Command::new(program).arg("--version"))
            .is_ok_and(|version| version.trim().ends_with(CARGO_DEB_VERSION))
    };
    if find_program("cargo-deb").is_some_and(is_here) {
        return Ok(());
    }
    say(format!(
        "cargo-deb {CARGO_DEB_VERSION} is missing: it makes the package; building it takes a minute or two"
    ));
    run(cargo().args([
        "install",
        "cargo-deb",
        "--version",
        CARGO_DEB_VERSION,
        "--locked",
    ]))
    .with_context(|| format!("build cargo-deb to {}", cargo_bin().display()))
}

/// Writes what the program itself knows best, and the package's changelog.
fn make_contents(memlb: &Path, contents: &Path) -> Result<()> {
    let (man, completions) = (contents.join("man"), contents.join("completions"));
    if contents.exists() {
        fs::remove_dir_all(contents).with_context(|| format!("remove {}", contents.display()))?;
    }
    fs::create_dir_all(&completions).with_context(|| format!("make {}", completions.display()))?;
    output(Command::new(memlb).arg("man").arg(&man))?;
    for (shell, file) in [("bash", "memlb"), ("zsh", "_memlb"), ("fish", "memlb.fish")] {
        let script = output(Command::new(memlb).args(["completions", shell]))?;
        write(&completions.join(file), &script)?;
    }
    let example = output(Command::new(memlb).args(["check", "--example"]))?;
    write(&contents.join("memlb.toml"), &example)?;
    write(&contents.join("changelog"), &changelog()?)
}

/// The changelog that Debian expects of a package's version: memlb's own is CHANGELOG.md.
fn changelog() -> Result<String> {
    let date = output(
        Command::new("git")
            .args(["log", "-1", "--format=%cD"])
            .current_dir(root()),
    )
    .context("ask for the date of the last commit")?;
    if date.trim().is_empty() {
        bail!("git tells no date of the last commit");
    }
    Ok(format!(
        "memlb ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md for what is new.\n\n \
         -- {}  {}\n",
        env!("CARGO_PKG_VERSION"),
        maintainer(),
        date.trim()
    ))
}

/// Who answers for the package: who makes it, if they say so as Debian's own tools are told; nobody else.
fn maintainer() -> String {
    let given = |variable| env::var(variable).ok().filter(|value| !value.is_empty());
    match (given("DEBFULLNAME"), given("DEBEMAIL")) {
        (Some(name), Some(address)) => format!("{name} <{address}>"),
        _ => NOBODY.to_owned(),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
