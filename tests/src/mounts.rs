//! Mounts for one process and its children.

/// A shell script for a process in a mount namespace of its own: it gets its own `/run`, which has the
/// names of network namespaces, and its own BPF file system.
pub const PRIVATE_MOUNTS: &str = "
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
";
