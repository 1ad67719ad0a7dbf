//! Has open connections counted now and then, in a task of its own: reading the flow table takes time.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};
use tracing::warn;

use crate::datapath;

/// At most so often.
const INTERVAL: Duration = Duration::from_secs(5);

/// A large table takes long: between two counts passes this many times what the last one took.
const REST: u32 = 500;

/// Ended when dropped.
#[derive(Debug)]
pub(super) struct Recounting(JoinHandle<()>);

impl Recounting {
    pub fn start(pin_path: PathBuf) -> Self {
        Self(tokio::spawn(recount(pin_path)))
    }
}

impl Drop for Recounting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn recount(pin_path: PathBuf) {
    let mut failing = false;
    loop {
        let pin_path = pin_path.clone();
        let begun = Instant::now();
        let counted = match spawn_blocking(move || datapath::recount(&pin_path)).await {
            Ok(counted) => counted,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &counted
            && !failing
        {
            warn!("count open connections: {error:#}; trying again");
        }
        failing = counted.is_err();
        sleep(INTERVAL.max(begun.elapsed() * REST)).await;
    }
}
