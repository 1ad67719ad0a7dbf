//! Asks the manager's task what it has decided, and reads the counters beside it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use crate::{
    control::Question,
    datapath::Stats,
    status::{Decided, Status},
};

/// The manager's loop answers in well under a millisecond, if it runs at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counters read this recently are good enough for the next asker: reading a full flow table takes
/// a tenth of a second, and any number of people may look at the page.
const FRESH: Duration = Duration::from_millis(500);

/// Copies share the counters that were read last.
#[derive(Debug, Clone)]
pub struct Asker {
    questions: mpsc::Sender<Question>,
    pin_path: PathBuf,
    last: Arc<Mutex<Option<Reading>>>,
}

/// Counters, and when they were read.
#[derive(Debug)]
struct Reading {
    at: Instant,
    stats: Arc<Stats>,
}

impl Asker {
    pub fn new(questions: mpsc::Sender<Question>, pin_path: PathBuf) -> Self {
        Self {
            questions,
            pin_path,
            last: Arc::default(),
        }
    }

    /// Returns what the manager has decided by now.
    ///
    /// # Errors
    ///
    /// Says that its loop does not answer.
    pub async fn decided(&self) -> Result<Decided> {
        let (question, decided) = oneshot::channel();
        let asked = async {
            self.questions.send(question).await.ok()?;
            decided.await.ok()
        };
        timeout(PATIENCE, asked)
            .await
            .context("the manager's loop does not answer")?
            .context("the manager stops")
    }

    /// Returns what the manager has decided by now, with counters not older than half a second.
    ///
    /// # Errors
    ///
    /// Says that the manager's loop does not answer, or which map cannot be read.
    pub async fn status(&self) -> Result<Status> {
        let stats = self.stats().await?;
        Ok(Status::new(self.decided().await?, &stats))
    }

    /// Returns the same without looking through the connection tables, which is cheap.
    ///
    /// # Errors
    ///
    /// As [`Self::status`].
    pub async fn totals(&self) -> Result<Status> {
        let pin_path = self.pin_path.clone();
        let stats = tokio::task::spawn_blocking(move || Stats::read_totals(&pin_path))
            .await
            .context("read the counters")??;
        Ok(Status::new(self.decided().await?, &stats))
    }

    /// One reads, and all who ask meanwhile wait for that.
    async fn stats(&self) -> Result<Arc<Stats>> {
        let mut last = self.last.lock().await;
        if let Some(Reading { at, stats }) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(stats.clone());
        }
        let pin_path = self.pin_path.clone();
        let stats = tokio::task::spawn_blocking(move || Stats::read_for_display(&pin_path))
            .await
            .context("read the counters")??;
        let stats = Arc::new(stats);
        *last = Some(Reading {
            at: Instant::now(),
            stats: stats.clone(),
        });
        Ok(stats)
    }
}
