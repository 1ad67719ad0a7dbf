//! Names that have the place of a worker's name; no worker may have them.

/// Every service's fallback.
pub const MANAGER: &str = "manager";

/// All workers that are up, while connections are spread.
pub const ALL_WORKERS: &str = "*";

/// What is selected while no worker is up and there is no fallback: new connections are refused.
pub const NO_BACKEND: &str = "none";
