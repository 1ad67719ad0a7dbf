//! The file system of all machines, made once of Debian's packages and stored below the target folder.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use memlb_tests::command::{output, run};

use crate::{debian, workspace::print_message};

/// Packages of the Vagrant box and of its provisioning, besides systemd.
const PACKAGES: &[&str] = &[
    "adduser",
    "apache2-bin",
    // Docker loads a profile for each container.
    "apparmor",
    "ca-certificates",
    "curl",
    "docker.io",
    "initramfs-tools",
    "iproute2",
    "iptables",
    // A second manager needs it; its service is disabled.
    "keepalived",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-sysv",
    "udev",
];

/// Size of the file system, in a sparse file.
const SIZE: &str = "6G";

/// A disk with its kernel.
#[derive(Debug)]
pub struct Image {
    pub disk: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The private key of the user `vagrant`.
    pub key: PathBuf,
}

impl Image {
    /// Returns the image's paths below `directory`. It may not exist.
    pub fn of(directory: &Path) -> Self {
        let file = |name| directory.join("image").join(name);
        Self {
            disk: file("disk.ext4"),
            kernel: file("vmlinuz"),
            initrd: file("initrd.img"),
            key: file("key"),
        }
    }

    /// Makes the image below `directory` unless it exists. Needs root.
    pub fn provide(directory: &Path) -> Result<Self> {
        let image = Self::of(directory);
        if image.disk.exists() {
            return Ok(image);
        }
        print_message(
            "making a Debian 12 with a kernel, Docker and Apache; this takes a few minutes, once",
        );
        let started = Instant::now();
        let draft = directory.join("draft");
        remove(&draft)?;
        fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
        let made = make(&draft);
        // Its many files belong to root.
        remove(&draft.join("root"))?;
        made?;
        let complete = directory.join("image");
        fs::rename(&draft, &complete).with_context(|| format!("make {}", complete.display()))?;
        print_message(format!(
            "made {} in {} s",
            complete.display(),
            started.elapsed().as_secs()
        ));
        Ok(image)
    }
}

fn make(draft: &Path) -> Result<()> {
    let root = draft.join("root");
    let key = draft.join("key");
    debian::bootstrap(PACKAGES, &root)?;
    output(
        Command::new("ssh-keygen")
            .args([
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "memlb-machines",
                "-f",
            ])
            .arg(&key),
    )?;
    finish(&root, &key.with_extension("pub"))?;
    for (link, file) in [("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")] {
        fs::copy(root.join(link), draft.join(file)).with_context(|| format!("copy {link}"))?;
    }
    output(
        Command::new("mkfs.ext4")
            .args(["-q", "-L", "memlb", "-d"])
            .args([&root, &draft.join("disk.ext4")])
            .arg(SIZE),
    )
    .context("make the disk")
    .map(drop)
}

/// Runs image.sh inside of `root`.
fn finish(root: &Path, key: &Path) -> Result<()> {
    let script = root.join("image.sh");
    fs::write(&script, include_str!("image.sh")).context("write image.sh")?;
    let log = root.with_extension("log");
    let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let key = File::open(key).with_context(|| format!("open {}", key.display()))?;
    let mut chroot = Command::new("chroot");
    chroot
        .arg(root)
        .args(["env", "--ignore-environment"])
        .arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["sh", "/image.sh"])
        .stdin(key)
        .stdout(output.try_clone().context("share the log file")?)
        .stderr(output);
    run(&mut chroot).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    fs::remove_file(&script).context("remove image.sh")
}

fn remove(directory: &Path) -> Result<()> {
    ensure!(
        !is_mounted_below(directory)?,
        "a file system is mounted below {}: unmount it first",
        directory.display()
    );
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))
}

/// An aborted debootstrap leaves /proc mounted there.
fn is_mounted_below(directory: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("list the mounts")?;
    let mount_points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    Ok(mount_points
        .map(Path::new)
        .any(|it| it.starts_with(directory)))
}
