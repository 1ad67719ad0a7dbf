//! Ctrl-C as a wish to be asked for, so that everything is taken down in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

/// Whether someone wants this to end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Keeps SIGINT, SIGTERM and SIGHUP from ending this process; to be called
    /// before it starts a thread. The programs it starts get them as ever.
    ///
    /// # Errors
    /// When the signals cannot be held back.
    pub fn catch() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGHUP);
        signals.thread_block().context("hold back signals")?;
        let asked = Arc::new(AtomicBool::new(false));
        let setting = Arc::clone(&asked);
        thread::spawn(move || {
            while signals.wait().is_ok() {
                setting.store(true, Ordering::Relaxed);
            }
        });
        Ok(Self { asked })
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When someone wants this to end.
    pub fn check(&self) -> Result<()> {
        if self.is_asked() {
            bail!("interrupted");
        }
        Ok(())
    }
}
