//! Runs the asynchronous part of a verb.

use std::{future::Future, time::Duration};

use anyhow::Context;

/// How long the end of the program waits for blocking tasks.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a task to its end on this thread; blocking work has threads of its own.
pub fn block_on<T, E: From<anyhow::Error>>(
    task: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(task);
    // A task that waits for a disk must not block the end.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    outcome
}
