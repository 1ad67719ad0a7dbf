//! Makes the Debian package: generated files, then cargo-deb.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::output;

use crate::{
    build, packaged_documents, setup,
    workspace::{cargo, print_message, root, target},
};

/// `.invalid` is a reserved domain (RFC 2606).
const PLACEHOLDER: &str = "Local build of memlb <nobody@memlb.invalid>";

/// Builds memlb and its package, and returns the package's path.
pub fn make() -> Result<PathBuf> {
    let package = package_of(&build::memlb()?)?;
    print_message(format!("made {}", package.display()));
    Ok(package)
}

/// Makes the package of the `memlb` that cargo has built.
pub fn package_of(memlb: &Path) -> Result<PathBuf> {
    setup::for_packaging()?;
    make_contents(memlb, &target().join("package"))?;
    // Prints only the package's path.
    let package = output(
        cargo()
            .args("deb --package=lb-user --no-build --strip --quiet".split(' '))
            .args(["--maintainer", &maintainer()]),
    )?;
    Ok(package.trim().into())
}

/// Writes the generated files (manual pages, completions, example) and the package's changelog.
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
    packaged_documents::write(root(), &contents.join("doc"))?;
    write(&contents.join("changelog"), &changelog()?)
}

/// The changelog in Debian's format, which refers to CHANGELOG.md.
fn changelog() -> Result<String> {
    let date = output(
        Command::new("git")
            .args(["log", "-1", "--format=%cD"])
            .current_dir(root()),
    )
    .context("read the date of the last commit")?;
    if date.trim().is_empty() {
        bail!("git prints no date of the last commit");
    }
    Ok(format!(
        "memlb ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md for what is new.\n\n \
         -- {}  {}\n",
        env!("CARGO_PKG_VERSION"),
        maintainer(),
        date.trim()
    ))
}

/// The package's maintainer, from the variables that Debian's tools use; else a placeholder.
fn maintainer() -> String {
    let given = |variable| env::var(variable).ok().filter(|value| !value.is_empty());
    match (given("DEBFULLNAME"), given("DEBEMAIL")) {
        (Some(name), Some(address)) => format!("{name} <{address}>"),
        _ => PLACEHOLDER.to_owned(),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
