//! What the replication's thread and views of the manager share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{PeerSettings, PeerStatus, slot::Slot, wire::Refusal};

/// How often a waiting handover looks again; longer than the time from an event to the queue.
const POLL: Duration = Duration::from_millis(12);

/// The state of all peers, in the order of the configuration. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Peers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    slots: Vec<Slot>,
    strangers: Mutex<BTreeMap<String, u64>>,
}

impl Peers {
    pub fn new(peers: impl IntoIterator<Item = PeerSettings>) -> Self {
        Self(Arc::new(Shared {
            slots: peers.into_iter().map(Slot::new).collect(),
            strangers: Mutex::default(),
        }))
    }

    /// Returns how many hellos were refused that came from no peer's address, by reason.
    pub fn strangers(&self) -> BTreeMap<String, u64> {
        let strangers = self.0.strangers.lock();
        strangers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn refuse_stranger(&self, refusal: &Refusal) {
        let strangers = self.0.strangers.lock();
        let mut strangers = strangers.unwrap_or_else(PoisonError::into_inner);
        *strangers.entry(refusal.name().to_owned()).or_default() += 1;
    }

    pub fn statuses(&self) -> Vec<PeerStatus> {
        self.0.slots.iter().map(Slot::status).collect()
    }

    /// Waits until every peer is connected, knows all connections of this manager and has acknowledged every record of
    /// what happened before the call.
    ///
    /// # Errors
    ///
    /// Says of each peer what is missing after `wait`, in a sentence.
    pub async fn acknowledged(&self, wait: Duration) -> Result<(), Vec<String>> {
        let end = Instant::now() + wait;
        // What happened before this call is in the queues then.
        sleep(POLL).await;
        let reported: Vec<u64> = self.slots().iter().map(|it| it.lock().reported()).collect();
        loop {
            let slots = self.slots().iter().zip(&reported);
            let missing = slots.filter_map(|(slot, reported)| slot.lock().missing(*reported));
            let missing: Vec<String> = missing.collect();
            match missing.is_empty() {
                true => return Ok(()),
                false if Instant::now() >= end => return Err(missing),
                false => sleep(POLL).await,
            }
        }
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.0.slots
    }
}

#[cfg(test)]
mod tests {
    use lb_common::maps::FlowRecord;
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        keys::{KeyId, PeerKeys, SigningKey},
        peer::slot::Sent,
    };

    #[tokio::test]
    async fn a_handover_waits_for_the_last_acknowledgement() {
        assert_eq!(Peers::default().acknowledged(Duration::ZERO).await, Ok(()));
        let peers = Peers::new([PeerSettings {
            name: "manager2".to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            keys: PeerKeys::single(SigningKey::new(KeyId(1), &Zeroizing::new([7; 32]))),
        }]);
        let missing = peers.acknowledged(Duration::ZERO).await.unwrap_err();
        assert_eq!(
            missing,
            ["manager2 is not connected: it has not answered yet"]
        );
        let link = || peers.slots()[0].lock();
        link().connected(1);
        let losses = link().losses;
        let now = std::time::Instant::now();
        let sent = |sequence, completes| Sent {
            sequence,
            bytes: 100,
            at: now,
            matters: true,
            taken: sequence,
            completes,
        };
        link().sent(sent(0, Some(losses)));
        peers.slots()[0].push(&[FlowRecord::default()]);
        link().take(1, &mut Vec::new());
        link().sent(sent(1, None));
        let missing = peers.acknowledged(Duration::ZERO).await.unwrap_err();
        assert_eq!(missing, ["manager2 does not know all connections yet"]);
        link().acknowledged(0, now);
        let missing = peers.acknowledged(Duration::ZERO).await.unwrap_err();
        assert_eq!(missing, ["manager2 has not acknowledged 1 records"]);
        let waits = peers.acknowledged(Duration::from_secs(20));
        let goes_on = async {
            sleep(POLL * 3).await;
            // What happens later is not waited for.
            peers.slots()[0].push(&[FlowRecord::default(); 2]);
            link().acknowledged(1, now);
        };
        let (waited, ()) = tokio::join!(waits, goes_on);
        assert_eq!(waited, Ok(()));
        // What was lost meanwhile is still missing after the end of a transmission.
        link().lost(3);
        link().sent(sent(2, Some(losses)));
        link().acknowledged(2, now);
        assert!(peers.acknowledged(Duration::ZERO).await.is_err());
    }
}
