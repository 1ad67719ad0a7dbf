//! Finds, downloads and unpacks Debian's kernels below the target folder, without installing them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::{
    command::{output, run},
    kernel::Series,
};

use crate::{
    packages::refresh_lists,
    workspace::{find_program, print_message},
};

/// An unpacked kernel with its modules.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    directory: PathBuf,
}

impl Kernel {
    /// Returns the newest kernel of a series below `cache`, or else downloads Debian's newest one.
    pub fn provide(series: Series, cache: &Path) -> Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
        let package = match newest(series, entries_of(cache)?) {
            Some(present) => present,
            None => download(series, cache)?,
        };
        let release = release_of(&package).context("every kernel has a release")?;
        Ok(Self {
            release: release.to_owned(),
            directory: cache.join(&package),
        })
    }

    /// Removes all kernels below `cache`.
    pub fn remove_all(cache: &Path) -> Result<()> {
        for package in entries_of(cache)? {
            if release_of(&package).is_some() {
                let directory = cache.join(package);
                fs::remove_dir_all(&directory)
                    .with_context(|| format!("remove {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// The file of the kernel.
    pub fn image(&self) -> PathBuf {
        self.directory
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Returns the files of these modules and their dependencies, in the order of loading. Built-in modules have none.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let steps = output(
                kmod("modprobe")?
                    .arg("--dirname")
                    .arg(&self.directory)
                    .args(["--set-version", &self.release, "--show-depends", name]),
            )?;
            for step in steps.lines() {
                if let Some(file) = step.strip_prefix("insmod ") {
                    let file = PathBuf::from(file.trim());
                    if !files.contains(&file) {
                        files.push(file);
                    }
                }
            }
        }
        Ok(files)
    }
}

fn entries_of(directory: &Path) -> Result<impl Iterator<Item = String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.into_string().ok()))
}

/// Downloads and unpacks the newest kernel of a series, and returns its package.
fn download(series: Series, cache: &Path) -> Result<String> {
    refresh_lists()?;
    let pattern = format!("^linux-image-{}\\.{}\\.", series.major, series.minor);
    let found = output(Command::new("apt-cache").args(["--names-only", "search", &pattern]))?;
    let names = found
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| name.to_owned());
    let package = newest(series, names).with_context(|| {
        format!(
            "this machine's package sources have no linux-image-{series}.*-cloud-amd64: add bookworm with its security \
             updates, or bookworm-backports"
        )
    })?;
    print_message(format!("downloading {package}"));
    let download = tempfile::tempdir_in(cache).context("make a folder")?;
    run(Command::new("apt-get")
        // Users may run this task, too, so it needs no sandbox for root.
        .args(["--quiet=2", "--option=APT::Sandbox::User=root", "download"])
        .arg(&package)
        .current_dir(download.path()))?;
    let archive = only_file_in(download.path())?;
    let unpacked = download.path().join("unpacked");
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .args([&archive, &unpacked]))?;
    let release = release_of(&package).context("every kernel has a release")?;
    run(kmod("depmod")?.arg("--basedir").arg(&unpacked).arg(release))?;
    // Atomic, so that an interrupted download leaves no incomplete kernel.
    fs::rename(&unpacked, cache.join(&package)).context("move the kernel to its folder")?;
    Ok(package)
}

fn kmod(program: &str) -> Result<Command> {
    // A user's PATH may not contain it.
    let program = find_program(program).with_context(|| format!("there is no {program}"))?;
    Ok(Command::new(program))
}

fn only_file_in(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).context("list the download")?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    ensure!(
        files.len() == 1,
        "expected one downloaded package, found {files:?}"
    );
    Ok(files[0].clone())
}

/// Returns the newest signed cloud kernel of this series among package names.
fn newest(series: Series, names: impl Iterator<Item = String>) -> Option<String> {
    let of_series = |name: &String| {
        let release = release_of(name)?;
        (release.parse::<Series>().ok()? == series).then(|| numbers(release))
    };
    names
        .filter(|name| of_series(name).is_some())
        .max_by_key(of_series)
}

fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    let is_exact = release.starts_with(|it: char| it.is_ascii_digit());
    (is_exact && release.ends_with("-cloud-amd64") && numbers(release).len() > 2).then_some(release)
}

fn numbers(release: &str) -> Vec<u64> {
    release
        .trim_end_matches("-cloud-amd64")
        .split(|it: char| !it.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{newest, release_of};

    #[test]
    fn selects_the_newest_signed_kernel_of_a_series() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
        ];
        let of = |series: &str| {
            let names = names.iter().map(|name| (*name).to_owned());
            newest(series.parse().ok()?, names)
        };
        assert_eq!(of("6.1").as_deref(), Some(names[1]));
        assert_eq!(of("6.12").as_deref(), Some(names[6]));
        assert_eq!(of("6.6"), None);
    }

    #[test]
    fn parses_the_release_of_a_package() {
        assert_eq!(
            release_of("linux-image-6.1.0-56-cloud-amd64"),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(release_of("linux-image-cloud-amd64"), None);
    }
}
