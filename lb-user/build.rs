//! Finds the compiled kernel programs, which are embedded in the binary.

use std::{env, path::PathBuf, process::ExitCode};

/// The variables that name the objects, and what those are called where nothing names them.
const OBJECTS: [(&str, &str); 2] = [
    ("MEMLB_EBPF_OBJECT", "memlb.bpf.o"),
    ("MEMLB_DSR_OBJECT", "dsr.bpf.o"),
];

fn main() -> ExitCode {
    for (variable, name) in OBJECTS {
        println!("cargo::rerun-if-env-changed={variable}");
        let object = env::var_os(variable).map_or_else(
            || {
                // Cargo sets it at run time, too, which stays right in a target folder that was copied.
                let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
                PathBuf::from(here).join("../target/ebpf").join(name)
            },
            PathBuf::from,
        );
        println!("cargo::rerun-if-changed={}", object.display());
        if !object.is_file() {
            println!(
                "cargo::error=the kernel programs are not built: {} is missing. Run \
                 `cargo xtask build-ebpf` once, or `cargo xtask build` for everything",
                object.display()
            );
            return ExitCode::FAILURE;
        }
        println!("cargo::rustc-env={variable}={}", object.display());
    }
    ExitCode::SUCCESS
}
