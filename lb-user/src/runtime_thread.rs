//! A thread that runs a tokio runtime of its own.

use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tracing::error;

/// A running thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct RuntimeThread {
    /// The thread's purpose, for messages.
    what: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RuntimeThread {
    /// Runs the future of `work` in a new thread with this name.
    ///
    /// # Errors
    ///
    /// Says why the thread cannot be started.
    pub fn start<F: Future<Output = ()>>(
        name: &str,
        what: &'static str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .with_context(|| format!("start the runtime of the {what}"))?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    // Dropping the sender ends the wait; it never sends.
                    _ = stopped => {}
                    () = work() => {}
                }
            });
            // Does not wait for blocking tasks, such as one that reads a map.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.with_context(|| format!("start the thread of the {what}"))?;
        Ok(Self {
            what,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the {} has panicked", self.what);
        }
    }
}
