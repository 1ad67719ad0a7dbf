//! What the replication's thread and views of the manager share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{PeerState, PeerStatus};

/// How often a waiting handover looks again.
const POLL: Duration = Duration::from_millis(5);

/// The state of all peers. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Peers(Arc<Mutex<Vec<PeerStatus>>>);

impl Peers {
    /// Returns the state of every peer, in the order of the configuration.
    pub fn statuses(&self) -> Vec<PeerStatus> {
        self.lock().clone()
    }

    /// Waits until every peer is connected, knows all connections of this manager and has acknowledged the last
    /// record.
    ///
    /// # Errors
    ///
    /// Says of each peer what is missing after `wait`, in a sentence.
    pub async fn acknowledged(&self, wait: Duration) -> Result<(), Vec<String>> {
        let end = Instant::now() + wait;
        loop {
            let missing: Vec<String> = self.lock().iter().filter_map(missing).collect();
            match missing.is_empty() {
                true => return Ok(()),
                false if Instant::now() >= end => return Err(missing),
                false => sleep(POLL).await,
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<PeerStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps a peer from taking over every connection.
fn missing(peer: &PeerStatus) -> Option<String> {
    let PeerStatus { name, .. } = peer;
    if peer.state != PeerState::Connected {
        let reason = peer.reason.as_deref().unwrap_or("it has not answered yet");
        return Some(format!("{name} is not connected: {reason}"));
    }
    if !peer.complete {
        return Some(format!("{name} does not know all connections yet"));
    }
    let waiting = peer.queue_records;
    (waiting > 0 || peer.lag_us.is_some_and(|lag| lag > 0))
        .then(|| format!("{name} has not acknowledged the last records ({waiting} wait)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_handover_waits_for_the_last_acknowledgement() {
        let peers = Peers::default();
        assert_eq!(peers.acknowledged(Duration::ZERO).await, Ok(()));
        peers.lock().push(PeerStatus {
            name: "manager2".to_owned(),
            ..PeerStatus::default()
        });
        let missing = peers
            .acknowledged(Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            missing,
            ["manager2 is not connected: it has not answered yet"]
        );
        let waiting = {
            let peers = peers.clone();
            tokio::spawn(async move { peers.acknowledged(Duration::from_secs(10)).await })
        };
        let set = |complete, lag| {
            let peer = &mut peers.lock()[0];
            peer.state = PeerState::Connected;
            (peer.complete, peer.lag_us) = (complete, Some(lag));
        };
        set(true, 700);
        sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        set(true, 0);
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }
}
