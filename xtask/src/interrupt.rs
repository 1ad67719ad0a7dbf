//! Ctrl-C as a flag that tasks check, so that they can clean up.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

/// Whether a signal has requested the end of this task.
#[derive(Debug, Clone)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs handlers of SIGINT, SIGTERM and SIGHUP. Child processes do not inherit handlers, as they would inherit
    /// a mask of blocked signals.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn catch() -> Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&requested))
                .with_context(|| format!("catch signal {signal}"))?;
        }
        Ok(Self { requested })
    }

    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// # Errors
    /// A signal has requested the end.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() {
            bail!("interrupted");
        }
        Ok(())
    }
}
