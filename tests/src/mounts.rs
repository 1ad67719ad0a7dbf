//! Mounts that only one process and what it starts see.

/// A shell script for a process in a mount namespace of its own: it gets its own `/run`, where the network
/// namespaces have their names, and its own BPF file system.
pub const PRIVATE_MOUNTS: &str = "
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
";
