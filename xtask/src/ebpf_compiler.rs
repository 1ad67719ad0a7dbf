//! Finds or fetches a compiler for `bpfel-unknown-none`, and bpf-linker.
//!
//! The target has no precompiled `core`, so the compiler needs its library's
//! source and unstable features: rustup's nightly where rustup reaches its
//! server, Debian's own compiler where not.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memlb_tests::{
    command::{output, run},
    wait::wait_for,
};

use crate::{
    packages,
    workspace::{self, cargo_bin, find_program, say},
};

/// Chooses the compiler by hand: `nightly` or `distro`.
const CHOICE: &str = "MEMLB_EBPF_TOOLCHAIN";

/// bpf-linker reads the bitcode of compilers up to its own LLVM's version.
const LLVM_MAJOR: u32 = 22;
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// The last nightly known to build everything here, with LLVM 22.
const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

const NIGHTLIES: &[Compiler] = &[
    Compiler::Rustup {
        toolchain: "nightly",
    },
    Compiler::Rustup {
        toolchain: PINNED_NIGHTLY,
    },
];

/// The `rust-version` of the workspace.
const OLDEST_RUST: u32 = 95;

const DISTRIBUTION_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
const LINKER_PACKAGES: &[&str] = &[
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
    "g++",
];

/// A compiler that can build for `bpfel-unknown-none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    Rustup { toolchain: &'static str },
    Distribution,
}

impl Compiler {
    /// Returns the compiler to use, fetching one where none is here yet.
    ///
    /// # Errors
    /// When there is none and none can be had; the error names the remedies.
    pub fn provide() -> Result<Self> {
        match env::var(CHOICE).as_deref() {
            Ok("nightly") => Self::present(NIGHTLIES)
                .or_else(Self::fetch_with_rustup)
                .with_context(|| {
                    format!(
                        "{CHOICE}=nightly, but rustup has no nightly with rust-src and LLVM \
                         {LLVM_MAJOR} or older, and cannot get it"
                    )
                }),
            Ok("distro") => {
                Self::present(&[Self::Distribution]).map_or_else(Self::install_distributions, Ok)
            }
            Ok(other) => bail!("{CHOICE} is `{other}`; it can be `nightly` or `distro`"),
            Err(_) => Self::present(NIGHTLIES)
                .or_else(|| Self::present(&[Self::Distribution]))
                .or_else(Self::fetch_with_rustup)
                .map_or_else(Self::install_distributions, Ok),
        }
    }

    /// Returns the first of `candidates` that is here and complete.
    fn present(candidates: &[Self]) -> Option<Self> {
        candidates
            .iter()
            .find(|compiler| compiler.is_usable() && compiler.has_library_source())
            .cloned()
    }

    fn fetch_with_rustup() -> Option<Self> {
        find_program("rustup")?;
        for compiler in NIGHTLIES {
            if let Self::Rustup { toolchain } = compiler
                && compiler.is_usable()
                && fetch(
                    &format!("rust-src for {toolchain}"),
                    &["component", "add", "rust-src", "--toolchain", toolchain],
                )
            {
                return Some(compiler.clone());
            }
        }
        fetch(
            PINNED_NIGHTLY,
            &[
                "toolchain",
                "install",
                PINNED_NIGHTLY,
                "--profile=minimal",
                "--component=rust-src,clippy",
            ],
        )
        .then_some(Self::Rustup {
            toolchain: PINNED_NIGHTLY,
        })
    }

    fn install_distributions() -> Result<Self> {
        if !packages::is_debian() {
            bail!(
                "no compiler for the kernel programs. Install rustup (https://rustup.rs) and run \
                 `rustup toolchain install {PINNED_NIGHTLY} --profile minimal --component rust-src`"
            );
        }
        say("rustup has no suitable nightly here; using Debian's compiler for the kernel programs");
        packages::provide_packages(DISTRIBUTION_PACKAGES)?;
        Self::present(&[Self::Distribution]).with_context(|| {
            format!(
                "Debian's /usr/bin/rustc is older than 1.{OLDEST_RUST}, newer than LLVM \
                 {LLVM_MAJOR}, or lacks its library's source: upgrade {}",
                DISTRIBUTION_PACKAGES.join(", ")
            )
        })
    }

    /// Returns cargo with this compiler, ready to build for the kernel, in the workspace.
    pub fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Rustup { .. } => self.program("cargo"),
            Self::Distribution => {
                let mut cargo = self.program("cargo");
                // `-Z build-std` is unstable, and this compiler is a stable one.
                cargo
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([cargo_bin()].into_iter().chain(env::split_paths(&path)));
        cargo
            .current_dir(workspace::root())
            .env("PATH", path.unwrap_or_default())
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags());
        cargo
    }

    pub fn has_clippy(&self) -> bool {
        match self {
            Self::Rustup { .. } => {
                output(self.program("cargo").args(["clippy", "--version"])).is_ok()
            }
            // Its cargo would find rustup's clippy, which is another compiler's.
            Self::Distribution => Path::new("/usr/bin/cargo-clippy").exists(),
        }
    }

    fn is_usable(&self) -> bool {
        let described = output(self.program("rustc").arg("-vV")).unwrap_or_default();
        let number = |key: &str, part: usize| -> Option<u32> {
            let value = described.lines().find_map(|line| line.strip_prefix(key))?;
            value.split(['.', '-']).nth(part)?.trim().parse().ok()
        };
        number("LLVM version: ", 0).is_some_and(|llvm| llvm <= LLVM_MAJOR)
            && number("release: ", 1).is_some_and(|minor| minor >= OLDEST_RUST)
    }

    fn has_library_source(&self) -> bool {
        output(self.program("rustc").args(["--print", "sysroot"])).is_ok_and(|sysroot| {
            Path::new(sysroot.trim())
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .exists()
        })
    }

    /// Returns this compiler's own `program`, free of what the cargo and the
    /// toolchain that run this task have put in the environment for theirs.
    fn program(&self, program: &str) -> Command {
        let mut command = match self {
            Self::Rustup { toolchain } => {
                let mut rustup = rustup();
                rustup.args(["run", toolchain, program]);
                rustup
            }
            Self::Distribution => Command::new(Path::new("/usr/bin").join(program)),
        };
        for variable in [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ] {
            command.env_remove(variable);
        }
        command
    }
}

/// Installs bpf-linker unless it is here.
///
/// # Errors
/// When it has to be built and cannot be.
pub fn provide_linker() -> Result<()> {
    if linker().is_some() {
        return Ok(());
    }
    say(format!(
        "bpf-linker {LINKER_VERSION} is missing: it links the kernel programs; building it takes a minute or two"
    ));
    if packages::is_debian() {
        packages::provide_packages(LINKER_PACKAGES)?;
    } else if !Path::new(LLVM_PREFIX).exists() {
        bail!(
            "install bpf-linker {LINKER_VERSION} (https://github.com/aya-rs/bpf-linker), built \
             against LLVM {LLVM_MAJOR}; then start again"
        );
    }
    run(workspace::cargo()
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
        ])
        .args(["--no-default-features", "--features", "llvm-22"])
        // llvm-sys asks by the second name, the linker's own build script by the first.
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("LLVM_SYS_221_PREFIX", LLVM_PREFIX))
    .context("build bpf-linker")
}

fn linker() -> Option<PathBuf> {
    let linker = find_program("bpf-linker")?;
    let version = output(Command::new(&linker).arg("--version")).ok()?;
    (version.trim() == format!("bpf-linker {LINKER_VERSION}")).then_some(linker)
}

fn rustflags() -> String {
    [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        "-Cdebuginfo=2".into(),
        // 32-bit registers and jumps (Linux 5.1): a third fewer instructions.
        "-Ctarget-cpu=v3".into(),
        // Else every few zeroed bytes become a call of a loop over bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        // Headers are viewed in place, at alignment 1: without it, each word is put together from
        // bytes. Packets and maps may be read so where the processor can (CONFIG_
        // HAVE_EFFICIENT_UNALIGNED_ACCESS: x86-64, arm64).
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
        // But words on the stack must stay in their places, where this would join neighbours anywhere.
        "-Clink-arg=--llvm-args=-combiner-store-merging=false".into(),
        "-Clink-arg=--btf".into(),
    ]
    .join("\x1f")
}

fn rustup() -> Command {
    let mut rustup = Command::new("rustup");
    // A question about a toolchain must never become its installation.
    rustup.env("RUSTUP_AUTO_INSTALL", "0");
    rustup
}

/// Lets rustup download, and says whether it did. Without a network that must
/// end soon and quietly, since there is another way.
fn fetch(what: &str, arguments: &[&str]) -> bool {
    if !server_answers() {
        return false;
    }
    say(format!(
        "rustup is fetching {what}: it compiles the kernel programs"
    ));
    let mut command = rustup();
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        return false;
    };
    let status = wait_for(Duration::from_secs(600), "rustup", || {
        child.try_wait().transpose()
    });
    match status {
        Ok(Ok(status)) => status.success(),
        _ => child
            .kill()
            .and_then(|()| child.wait())
            .is_ok_and(|status| status.success()),
    }
}

/// curl heeds the proxies that rustup heeds.
fn server_answers() -> bool {
    let server = env::var("RUSTUP_DIST_SERVER").unwrap_or("https://static.rust-lang.org".into());
    let channel = format!("{server}/dist/channel-rust-nightly.toml.sha256");
    output(
        Command::new("curl")
            .args("--head --silent --fail --location --max-time 10".split(' '))
            .arg(channel),
    )
    .is_ok()
}
