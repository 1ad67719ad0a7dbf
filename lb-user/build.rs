//! Finds the compiled kernel programs, which are embedded in the binary.

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=MEMLB_EBPF_OBJECT");
    let object = env::var_os("MEMLB_EBPF_OBJECT").map_or_else(
        || {
            // Cargo sets it at run time, too, which stays right in a target folder that was copied.
            let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
            PathBuf::from(here).join("../target/ebpf/memlb.bpf.o")
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
    println!("cargo::rustc-env=MEMLB_EBPF_OBJECT={}", object.display());
    ExitCode::SUCCESS
}
