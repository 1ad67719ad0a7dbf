//! Finds or installs a compiler for `bpfel-unknown-none`, and bpf-linker.
//!
//! The target has no precompiled `core`, so the compiler needs the source of its library and unstable features:
//! rustup's nightly if rustup reaches its server, else Debian's compiler.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::{output, run};

use crate::{
    packages,
    workspace::{self, cargo_bin, find_program, print_message},
};

/// Variable that selects the compiler: `nightly` or `distro`.
const CHOICE: &str = "MEMLB_EBPF_TOOLCHAIN";

/// bpf-linker reads the bitcode of compilers up to the version of its LLVM.
const LLVM_MAJOR: u32 = 22;
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// The last tested nightly with LLVM 22.
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
    /// Returns the compiler to use, and installs one if there is none.
    ///
    /// # Errors
    /// No compiler can be installed. The error names the remedies.
    pub fn provide() -> Result<Self> {
        match env::var(CHOICE).as_deref() {
            Ok("nightly") => Self::present(NIGHTLIES)
                .or_else(Self::fetch_with_rustup)
                .with_context(|| {
                    format!(
                        "{CHOICE}=nightly, but rustup has no nightly with rust-src and LLVM \
                         {LLVM_MAJOR} or older, and cannot install one"
                    )
                }),
            Ok("distro") => {
                Self::present(&[Self::Distribution]).map_or_else(Self::install_distributions, Ok)
            }
            Ok(other) => bail!("{CHOICE} is `{other}`; expected `nightly` or `distro`"),
            Err(_) => Self::present(NIGHTLIES)
                .or_else(|| Self::present(&[Self::Distribution]))
                .or_else(Self::fetch_with_rustup)
                .map_or_else(Self::install_distributions, Ok),
        }
    }

    /// Returns the first of `candidates` that is installed and complete.
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
                "there is no compiler for the kernel programs. Install rustup (https://rustup.rs) and run \
                 `rustup toolchain install {PINNED_NIGHTLY} --profile minimal --component rust-src`"
            );
        }
        print_message(
            "rustup has no suitable nightly; installing Debian's compiler for the kernel programs",
        );
        packages::provide_packages(DISTRIBUTION_PACKAGES)?;
        Self::present(&[Self::Distribution]).with_context(|| {
            format!(
                "Debian's /usr/bin/rustc is older than 1.{OLDEST_RUST}, newer than LLVM \
                 {LLVM_MAJOR}, or lacks its library's source: upgrade {}",
                DISTRIBUTION_PACKAGES.join(", ")
            )
        })
    }

    /// Returns cargo with this compiler and the flags for the kernel programs, in the workspace.
    pub fn cargo(&self) -> Command {
        let mut cargo = self.program("cargo");
        if *self == Self::Distribution {
            // `-Z build-std` is unstable, and this compiler is a stable one.
            cargo
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTC_BOOTSTRAP", "1");
        }
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
            // Its cargo would run rustup's clippy, which belongs to another compiler.
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

    /// Returns this compiler's `program`, without the variables that the cargo of this task has set for its own
    /// compiler.
    fn program(&self, program: &str) -> Command {
        let mut command = match self {
            Self::Rustup { toolchain } => {
                let mut rustup = Command::new("rustup");
                // A question about a toolchain must not install it.
                rustup
                    .env("RUSTUP_AUTO_INSTALL", "0")
                    .args(["run", toolchain, program]);
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

/// Installs bpf-linker if it is missing.
///
/// # Errors
/// The build of bpf-linker failed.
pub fn provide_linker() -> Result<()> {
    if linker().is_some() {
        return Ok(());
    }
    print_message(format!(
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
        // The linker's build script reads the first variable, llvm-sys the second one.
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
        // Without it, zeroing a few bytes becomes a call of a loop over bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        // Headers are viewed in place, at alignment 1. Without it, each word is composed of bytes. The kernel allows
        // unaligned access to packets and maps if the processor does
        // (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS: x86-64, arm64).
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
        // But the verifier requires aligned words on the stack, and this pass would merge stores into unaligned ones.
        "-Clink-arg=--llvm-args=-combiner-store-merging=false".into(),
        "-Clink-arg=--btf".into(),
    ]
    .join("\x1f")
}

/// Downloads by rustup; returns whether that succeeded. Without a network, it must fail soon and without messages,
/// because Debian's compiler is the alternative.
fn fetch(what: &str, arguments: &[&str]) -> bool {
    if !server_answers() {
        return false;
    }
    print_message(format!(
        "rustup downloads {what}, to compile the kernel programs"
    ));
    let mut rustup = Command::new("timeout");
    rustup
        .args(["600", "rustup"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    rustup.status().is_ok_and(|status| status.success())
}

/// By curl, which uses the same proxies as rustup.
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
