//! The tasks of `cargo xtask`, and code that the benchmarks use, too.

pub mod build;
pub mod build_ebpf;
mod debian;
pub mod ebpf_compiler;
pub mod image;
pub mod interrupt;
pub mod kernels;
pub mod lab;
pub mod machines;
pub mod package;
mod packaged_documents;
pub mod packages;
pub mod privilege;
pub mod run;
pub mod setup;
pub mod test;
pub mod test_binaries;
pub mod workspace;
