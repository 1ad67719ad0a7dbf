//! Operators' orders, joined workers and denied clients of all managers: for each worker and each prefix, the last
//! change on any manager wins. The manager records its changes, and applies those of its peers; the senders send what a
//! peer does not know.

mod register;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use register::{OperatorState, OrderEntry, OrderValue, Registers, Subject};

/// The most bytes of JSON in a frame.
const FRAME_BYTES: usize = 32 * 1024;

/// A frame of orders from a peer.
#[derive(Debug)]
pub struct ReceivedOrders {
    pub peer: usize,
    pub json: Vec<u8>,
}

/// The registers, shared by the manager's task of the orders and the senders.
#[derive(Debug, Clone)]
pub struct OrderExchange {
    registers: Arc<Mutex<Registers>>,
    changes: watch::Sender<()>,
}

impl OrderExchange {
    pub fn new(registers: Registers) -> Self {
        Self {
            registers: Arc::new(Mutex::new(registers)),
            changes: watch::Sender::new(()),
        }
    }

    /// Returns the queue of changes for a peer.
    pub fn outbox(&self, peer: usize) -> Outbox {
        Outbox {
            peer,
            exchange: self.clone(),
            changes: self.changes.subscribe(),
            sent: 0,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies the senders after a change of the registers.
    pub fn notify_senders(&self) {
        self.changes.send_replace(());
    }
}

/// The changes that one peer does not know yet.
#[derive(Debug)]
pub struct Outbox {
    peer: usize,
    exchange: OrderExchange,
    changes: watch::Receiver<()>,
    /// The last change that was sent.
    sent: u64,
}

impl Outbox {
    /// Makes [`Self::next`] begin with the oldest change.
    pub fn restart(&mut self) {
        self.sent = 0;
    }

    /// Waits for a change. Cancel safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns the next entries as JSON, as many as fit into a frame.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let registers = self.exchange.lock();
        let mut json = Vec::new();
        for (change, entry) in registers.since(self.sent) {
            if entry.from == Some(self.peer) {
                self.sent = change;
                continue;
            }
            let Ok(next) = serde_json::to_vec(entry) else {
                continue;
            };
            if !json.is_empty() && json.len() + next.len() + 2 > FRAME_BYTES {
                break;
            }
            json.push(if json.is_empty() { b'[' } else { b',' });
            json.extend_from_slice(&next);
            self.sent = change;
        }
        json.push(b']');
        (json.len() > 1).then_some(json)
    }
}

#[cfg(test)]
mod tests;
