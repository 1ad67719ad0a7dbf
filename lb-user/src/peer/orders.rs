//! Replicates operators' orders, joined workers and denied clients: for each worker and each prefix, the last change on
//! any manager wins.
//!
//! Every manager compares what is in force with its registers. A difference is a change made on this manager: it gets a
//! stamp and is sent to the peers. A peer's newer entry is applied as an operator's order. It is then in force, so that it
//! is no difference and is not sent back.

mod apply;
mod register;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_core::AdminOverrides;
use tokio::{
    sync::{mpsc, watch},
    time::interval,
};
use tracing::{debug, warn};

use crate::{
    deny::DenyList,
    history::now_ms,
    manager::{ManagerHandle, StateFile},
    membership::Membership,
};
pub use register::{OrderEntry, Registers};

/// The most bytes of JSON in a frame.
const FRAME_BYTES: usize = 32 * 1024;

/// How often entries that could not be applied are tried again.
const RETRY: Duration = Duration::from_secs(30);

/// A frame of orders from a peer.
#[derive(Debug)]
pub struct ReceivedOrders {
    pub peer: usize,
    pub json: Vec<u8>,
}

/// What is in force on this manager, each with its version number.
#[derive(Debug)]
pub struct OperatorStateWatch {
    pub overrides: watch::Receiver<(u64, AdminOverrides)>,
    pub membership: watch::Receiver<(u64, Membership)>,
    pub denied: watch::Receiver<(u64, DenyList)>,
}

/// The registers, shared by the task of the orders and the senders.
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

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// Keeps the registers equal to what is in force, until the manager ends.
pub async fn run(
    exchange: OrderExchange,
    mut in_force: OperatorStateWatch,
    mut received: mpsc::Receiver<ReceivedOrders>,
    manager: ManagerHandle,
    own_name: String,
    file: StateFile<Registers>,
) {
    let mut orders = Orders {
        exchange,
        manager,
        own_name,
        file,
    };
    let mut retry = interval(RETRY);
    loop {
        orders.record_changes(&mut in_force);
        tokio::select! {
            changed = in_force.overrides.changed() => if changed.is_err() { return },
            changed = in_force.membership.changed() => if changed.is_err() { return },
            changed = in_force.denied.changed() => if changed.is_err() { return },
            Some(frame) = received.recv() => orders.receive(frame, &mut in_force).await,
            _ = retry.tick() => {
                orders.exchange.lock().expire(now_ms());
                orders.apply(&mut in_force).await;
            }
        }
    }
}

struct Orders {
    exchange: OrderExchange,
    manager: ManagerHandle,
    own_name: String,
    file: StateFile<Registers>,
}

impl Orders {
    /// Records the changes that were made on this manager.
    fn record_changes(&mut self, in_force: &mut OperatorStateWatch) {
        let now = register::OperatorState {
            overrides: in_force.overrides.borrow_and_update().1.clone(),
            membership: in_force.membership.borrow_and_update().1.clone(),
            denied: in_force.denied.borrow_and_update().1.clone(),
        };
        let changed = self.exchange.lock().note(&now, now_ms(), &self.own_name);
        if changed {
            self.publish();
        }
    }

    /// Saves the registers, and wakes the senders.
    fn publish(&self) {
        let registers = self.exchange.lock().clone();
        self.file.save(registers);
        self.exchange.changes.send_replace(());
    }

    async fn receive(&mut self, frame: ReceivedOrders, in_force: &mut OperatorStateWatch) {
        let entries: Vec<OrderEntry> = match serde_json::from_slice(&frame.json) {
            Ok(entries) => entries,
            // The frame is signed, so a memlb with other kinds of entries sent it.
            Err(error) => return warn!("decode orders of a peer: {error}"),
        };
        let mut is_newer = false;
        for entry in entries {
            is_newer |= self.exchange.lock().merge(entry, frame.peer);
        }
        if is_newer {
            self.apply(in_force).await;
            self.publish();
        }
    }

    /// Applies the entries that are not in force yet.
    async fn apply(&mut self, in_force: &mut OperatorStateWatch) {
        let pending = self.exchange.lock().pending();
        for entry in pending {
            let applied = apply::apply(&entry, in_force, &self.manager).await;
            match applied {
                Ok(()) => self.exchange.lock().applied(&entry),
                // For example, only the peer has the worker.
                Err(error) => debug!("apply an order of {}: {error:#}", entry.manager),
            }
        }
    }
}

#[cfg(test)]
mod tests;
