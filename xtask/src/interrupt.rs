//! Ctrl-C as a flag that tasks check, so that they remove everything in order.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

/// Whether someone wants this to end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Keeps SIGINT, SIGTERM and SIGHUP from ending this process.
    ///
    /// By handlers, which a new program does not inherit; a mask of blocked
    /// signals it would, and then be deaf to them.
    ///
    /// # Errors
    /// When the handlers cannot be set.
    pub fn catch() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&asked))
                .with_context(|| format!("catch signal {signal}"))?;
        }
        Ok(Self { asked })
    }

    pub fn is_requested(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When someone wants this to end.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() {
            bail!("interrupted");
        }
        Ok(())
    }
}
