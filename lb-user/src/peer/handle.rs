//! The state of the peers, shared by the replication's thread and the views.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{PeerSettings, PeerStatus, remote::RemotePeer};

/// How often a waiting handover checks again. Longer than the time from an event to the queue.
const POLL: Duration = Duration::from_millis(12);

/// The state of all peers, in the order of the configuration. Clones share it, also after a change of the peers.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    remotes: Arc<Mutex<Arc<[RemotePeer]>>>,
    serving: Arc<AtomicU16>,
}

impl Peers {
    pub fn new(peers: impl IntoIterator<Item = PeerSettings>) -> Self {
        let all = Self::default();
        all.replace(peers);
        all
    }

    /// Replaces the peers, with new states.
    pub fn replace(&self, peers: impl IntoIterator<Item = PeerSettings>) {
        *self.lock() = peers.into_iter().map(RemotePeer::new).collect();
    }

    /// Whether these are the peers, with the same addresses and keys.
    pub fn is_same_as(&self, peers: &[PeerSettings]) -> bool {
        let remotes = self.remotes();
        let mut pairs = remotes.iter().zip(peers);
        remotes.len() == peers.len() && pairs.all(|(remote, peer)| remote.settings.is_same(peer))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[RemotePeer]>> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn statuses(&self) -> Vec<PeerStatus> {
        self.remotes().iter().map(RemotePeer::status).collect()
    }

    /// Sets how many backends of this manager can take connections.
    pub fn set_serving(&self, backends: u16) {
        self.serving.store(backends, Ordering::Relaxed);
    }

    /// Waits until every peer is connected, can use as many backends as this manager, knows all connections of this
    /// manager, and has acknowledged every record from before the call.
    ///
    /// # Errors
    ///
    /// Returns a sentence for each peer that lacks something after `wait`.
    pub async fn flush(&self, wait: Duration) -> Result<(), Vec<String>> {
        let end = Instant::now() + wait;
        // The queues then hold every record from before this call.
        sleep(POLL).await;
        let remotes = self.remotes();
        let reported: Vec<u64> = remotes.iter().map(|it| it.lock().reported()).collect();
        loop {
            let serving = self.serving.load(Ordering::Relaxed);
            let remotes = remotes.iter().zip(&reported);
            let missing =
                remotes.filter_map(|(remote, reported)| remote.lock().missing(*reported, serving));
            let missing: Vec<String> = missing.collect();
            match missing.is_empty() {
                true => return Ok(()),
                false if Instant::now() >= end => return Err(missing),
                false => sleep(POLL).await,
            }
        }
    }

    pub(super) fn remotes(&self) -> Arc<[RemotePeer]> {
        Arc::clone(&self.lock())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::maps::FlowRecord;
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        keys::{KeyId, PeerKeys, SigningKey},
        peer::{remote::SentFrame, wire::Advertisement},
    };

    #[tokio::test]
    async fn a_handover_waits_for_the_last_acknowledgement() {
        assert_eq!(Peers::default().flush(Duration::ZERO).await, Ok(()));
        let peers = Peers::new([PeerSettings {
            name: "manager2".to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            keys: PeerKeys::single(SigningKey::new(KeyId(1), &Zeroizing::new([7; 32]))),
        }]);
        let missing = peers.flush(Duration::ZERO).await.unwrap_err();
        assert_eq!(
            missing,
            ["manager2 is not connected: it has not answered yet"]
        );
        let remotes = peers.remotes();
        let state = || remotes[0].lock();
        state().connected(1);
        let losses = state().losses;
        let now = std::time::Instant::now();
        let sent = |sequence, completes| SentFrame {
            sequence,
            bytes: 100,
            sent: now,
            reported: now,
            has_records: true,
            dequeued: sequence,
            completes,
        };
        state().record_sent(sent(0, Some(losses)));
        remotes[0].push(&[FlowRecord::default()], now);
        state().dequeue(1, &mut Vec::new());
        state().record_sent(sent(1, None));
        let missing = peers.flush(Duration::ZERO).await.unwrap_err();
        assert_eq!(missing, ["manager2 does not know all connections yet"]);
        state().handle_acknowledgement(0, now);
        let missing = peers.flush(Duration::ZERO).await.unwrap_err();
        assert_eq!(missing, ["manager2 has not acknowledged 1 records"]);
        let waits = peers.flush(Duration::from_secs(20));
        let goes_on = async {
            sleep(POLL * 3).await;
            // What happens later is not waited for.
            remotes[0].push(&[FlowRecord::default(); 2], now);
            state().handle_acknowledgement(1, now);
        };
        let (waited, ()) = tokio::join!(waits, goes_on);
        assert_eq!(waited, Ok(()));
        // It does not serve as many workers.
        peers.set_serving(2);
        let advertisement = |serving| Advertisement {
            serving,
            ..Advertisement::default()
        };
        state().handle_hello(1, &advertisement(1));
        let missing = peers.flush(Duration::ZERO).await.unwrap_err();
        assert!(missing[0].starts_with("manager2 has 1 usable backends, and this manager 2: "));
        state().handle_hello(1, &advertisement(2));
        // The answer to a hello may be older.
        state().handle_hello_reply(1, &advertisement(1));
        state().handle_acknowledgement(1, now);
        // A loss during a transmission keeps the peer incomplete after its end.
        state().record_loss(3);
        state().record_sent(sent(2, Some(losses)));
        state().handle_acknowledgement(2, now);
        assert!(peers.flush(Duration::ZERO).await.is_err());
    }

    #[test]
    fn a_record_that_waited_for_long_gets_the_whole_time_for_its_acknowledgement() {
        let peers = Peers::new([PeerSettings {
            name: "manager2".to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            keys: PeerKeys::single(SigningKey::new(KeyId(1), &Zeroizing::new([7; 32]))),
        }]);
        let remotes = peers.remotes();
        let mut state = remotes[0].lock();
        state.connected(1);
        let sent = std::time::Instant::now();
        let waited = Duration::from_secs(3);
        state.record_sent(SentFrame {
            sequence: 0,
            bytes: 100,
            sent,
            reported: sent.checked_sub(waited).unwrap(),
            has_records: true,
            dequeued: 1,
            completes: None,
        });
        assert_eq!(state.oldest_unacknowledged(), Some(sent));
        drop(state);
        assert!(remotes[0].status().lag_us >= Some(3_000_000));
    }
}
