//! Applies the orders of peers' operators, and records this manager's for the peers.
//!
//! The task compares what is in force with the registers. A difference is a change made on this manager: it gets a
//! stamp and is sent to the peers. A peer's newer entry is applied as an operator's order. It is then in force, so that
//! it is no difference and is not sent back.

mod apply;

use std::time::Duration;

use tokio::{sync::mpsc, time::interval};
use tracing::{debug, warn};

pub(super) use self::apply::OperatorStateWatch;
use super::{ManagerHandle, StateFile};
use crate::{
    history::now_ms,
    peer::{OperatorState, OrderEntry, OrderExchange, ReceivedOrders, Registers},
};

/// How often entries that could not be applied are tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Keeps the registers equal to what is in force, until the manager ends.
pub(super) async fn run(
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
        let now = OperatorState {
            overrides: in_force.overrides.borrow_and_update().1.clone(),
            membership: in_force.membership.borrow_and_update().1.clone(),
            denied: in_force.denied.borrow_and_update().1.clone(),
        };
        let changed = self
            .exchange
            .lock()
            .record_changes(&now, now_ms(), &self.own_name);
        if changed {
            self.publish();
        }
    }

    /// Saves the registers, and wakes the senders.
    fn publish(&self) {
        let registers = self.exchange.lock().clone();
        self.file.save(registers);
        self.exchange.notify_senders();
    }

    async fn receive(&mut self, frame: ReceivedOrders, in_force: &mut OperatorStateWatch) {
        // Otherwise an older entry of the peer would replace a change that was made here just now.
        self.record_changes(in_force);
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
mod tests {
    use lb_core::{AdminAction, AdminCommand, AdminOverrides};
    use tokio::{
        sync::watch,
        time::{Duration, timeout},
    };

    use super::*;
    use crate::{deny::DenyList, membership::Membership};

    #[tokio::test]
    async fn a_peers_older_order_replaces_no_order_that_was_given_here_just_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers.json");
        let (manager, _requests) = ManagerHandle::without_manager();
        let mut orders = Orders {
            exchange: OrderExchange::new(Registers::default()),
            manager,
            own_name: "manager1".to_owned(),
            file: StateFile::load(&path, "the orders", "").unwrap().0,
        };
        let (overrides, in_force) = watch::channel((0, AdminOverrides::default()));
        let mut in_force = OperatorStateWatch {
            overrides: in_force,
            membership: watch::channel((0, Membership::default())).1,
            denied: watch::channel((0, DenyList::default())).1,
        };
        orders.record_changes(&mut in_force);
        let drained = serde_json::json!([{
            "worker": "worker1", "service": null,
            "state": { "value": "drain", "by": "root", "at_ms": 1 },
        }]);
        let drained = (1, serde_json::from_value(drained).unwrap());
        overrides.send_replace(drained);
        let weighted = AdminCommand {
            worker: "worker1".to_owned(),
            service: None,
            action: AdminAction::Weight { percent: 50 },
            by: "root".to_owned(),
            at_ms: 1,
            reason: None,
        };
        let entries = serde_json::json!([{
            "subject": { "orders": "worker1" },
            "value": { "orders": [weighted] },
            "stamp": 1, "manager": "manager2",
        }]);
        let frame = ReceivedOrders {
            peer: 0,
            json: serde_json::to_vec(&entries).unwrap(),
        };
        // No manager applies orders in this test.
        let received = orders.receive(frame, &mut in_force);
        let received = timeout(Duration::from_secs(5), received).await;
        assert!(received.is_ok(), "the older order is applied");
        assert_eq!(orders.exchange.lock().pending(), []);
    }
}
