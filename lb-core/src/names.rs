//! Names that stand in place of a worker's name. No worker may have one of them.

/// Every service's fallback.
pub const MANAGER: &str = "manager";

/// Stands for all workers that are up, while connections are spread.
pub const ALL_WORKERS: &str = "*";

/// Stands for no backend, while no worker is up and there is no fallback: new connections are refused.
pub const NO_BACKEND: &str = "none";
