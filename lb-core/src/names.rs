//! Names that stand where a worker's name stands otherwise; no worker may have them.

/// Every service's fallback.
pub const MANAGER: &str = "manager";

/// All workers that are up, while connections are spread.
pub const ALL_WORKERS: &str = "*";

/// What is selected while no worker is up and there is no fallback: new connections are refused.
pub const NO_BACKEND: &str = "none";
