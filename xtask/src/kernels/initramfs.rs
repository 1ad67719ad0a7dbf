//! The guest's files, in the archive that its kernel unpacks to memory at boot.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use memlb_tests::command::run;
use tempfile::TempDir;

/// Files for the archive, collected in a temporary folder.
#[derive(Debug)]
pub struct Initramfs {
    root: TempDir,
}

impl Initramfs {
    /// Makes the folder below `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        let root = tempfile::tempdir_in(directory).context("make a folder")?;
        let initramfs = Self { root };
        for directory in ["dev", "etc", "proc", "run", "sys", "tmp"] {
            initramfs.make_directory(&initramfs.root.path().join(directory))?;
        }
        Ok(initramfs)
    }

    /// Adds a program of this machine at `path`, without debug information, and the libraries it needs.
    pub fn add_program(&self, program: &Path, path: &str) -> Result<()> {
        let copy = self.staged(path)?;
        run(Command::new("strip")
            .args(["--strip-debug", "-o"])
            .args([&copy, program]))?;
        executable(&copy)?;
        for library in libraries(program)? {
            let path = library.to_str().context("a library's name")?;
            self.add_file(&library, path)?;
        }
        Ok(())
    }

    /// Adds a kernel module at `path`, decompressed.
    pub fn add_module(&self, module: &Path, path: &str) -> Result<()> {
        if module.extension().is_none_or(|extension| extension != "xz") {
            return self.add_file(module, path);
        }
        let copy = self.staged(path)?;
        let file = File::create(&copy).with_context(|| format!("make {}", copy.display()))?;
        run(Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(module)
            .stdout(file))
    }

    /// Adds a file with this content. It is executable if it begins with `#!`.
    pub fn add_text(&self, text: &str, path: &str) -> Result<()> {
        let file = self.staged(path)?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        if text.starts_with("#!") {
            executable(&file)?;
        }
        Ok(())
    }

    /// Packs all files to `archive`, with root as owner.
    pub fn pack(self, archive: &Path) -> Result<()> {
        let file = File::create(archive).with_context(|| format!("make {}", archive.display()))?;
        run(Command::new("sh")
            .args([
                "-c",
                "find . -print0 | cpio --null --create --format=newc --owner=+0:+0 --quiet",
            ])
            .current_dir(self.root.path())
            .stdout(file))
    }

    /// Adds a file of this machine at `path`.
    pub fn add_file(&self, file: &Path, path: &str) -> Result<()> {
        let copy = self.staged(path)?;
        fs::copy(file, &copy).with_context(|| format!("copy {}", file.display()))?;
        Ok(())
    }

    /// Returns where `path` of the guest is collected, and makes its folder.
    fn staged(&self, path: &str) -> Result<PathBuf> {
        let file = self.root.path().join(path.trim_start_matches('/'));
        self.make_directory(file.parent().context("a file's folder")?)?;
        Ok(file)
    }

    fn make_directory(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))
    }
}

fn executable(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", file.display()))
}

/// The shared libraries of a program, with its loader; none for a statically linked program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let answer = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    anyhow::ensure!(
        !answer.contains("not found"),
        "{}: {answer}",
        program.display()
    );
    Ok(paths(&answer))
}

fn paths(answer: &str) -> Vec<PathBuf> {
    let words = answer.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::paths;

    #[test]
    fn finds_the_libraries_that_a_program_needs() {
        let answer = "\tlinux-vdso.so.1 (0x00007f)\n\
                      \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths(answer), expected.map(PathBuf::from));
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }
}
