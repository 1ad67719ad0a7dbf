use std::net::IpAddr;

use lb_core::{AdminAction, AdminCommand, AdminOverrides};

use super::{OperatorState, OrderEntry, OrderExchange, Registers};
use crate::{
    deny::{Denied, DenyList},
    membership::Membership,
};

fn in_force(drained: &[&str], joined: &[(&str, IpAddr)], denied: &[&str]) -> OperatorState {
    let entry = |worker| {
        serde_json::json!({
            "worker": worker, "service": null,
            "state": { "value": "drain", "by": "root", "at_ms": 1 },
        })
    };
    let overrides: Vec<_> = drained.iter().map(entry).collect();
    let overrides: AdminOverrides = serde_json::from_value(overrides.into()).unwrap();
    let joined: std::collections::BTreeMap<_, _> = joined.iter().copied().collect();
    let membership: Membership =
        serde_json::from_value(serde_json::to_value(joined).unwrap()).unwrap();
    let denied = denied.iter().map(|prefix| Denied {
        prefix: prefix.parse().unwrap(),
        by: "root".to_owned(),
        at_ms: 1,
        reason: None,
    });
    OperatorState {
        overrides,
        membership,
        denied: DenyList::from(denied.collect::<Vec<_>>()),
    }
}

/// Passes on what the peer does not know.
fn send(from: &mut super::Outbox, to: &mut Registers) -> usize {
    let mut newer = 0;
    while let Some(json) = from.next() {
        let entries: Vec<OrderEntry> = serde_json::from_slice(&json).unwrap();
        for entry in entries {
            newer += usize::from(to.merge(entry, 0));
        }
    }
    newer
}

#[test]
fn the_last_change_wins_and_a_removal_is_one() {
    let (one, other) = (
        OrderExchange::new(Registers::default()),
        OrderExchange::new(Registers::default()),
    );
    let (mut to_other, mut to_one) = (one.outbox(0), other.outbox(0));
    let drained = in_force(
        &["worker1"],
        &[("worker9", [10, 0, 1, 9].into())],
        &["203.0.113.0/24"],
    );
    assert!(one.lock().record_changes(&drained, 1_000, "manager1"));
    assert!(!one.lock().record_changes(&drained, 1_001, "manager1"));
    assert_eq!(send(&mut to_other, &mut other.lock()), 3);
    let pending = other.lock().pending();
    assert_eq!(pending.len(), 3);
    // What cannot be applied yet is no change made here.
    assert!(
        !other
            .lock()
            .record_changes(&OperatorState::default(), 1_002, "manager2")
    );
    pending.iter().for_each(|entry| other.lock().applied(entry));
    assert!(!other.lock().record_changes(&drained, 1_003, "manager2"));
    // Nothing is sent back.
    assert_eq!(send(&mut to_one, &mut one.lock()), 0);

    // The other operator ends it, with a clock that is behind.
    let ended = in_force(&[], &[("worker9", [10, 0, 1, 9].into())], &[]);
    assert!(other.lock().record_changes(&ended, 7, "manager2"));
    assert_eq!(send(&mut to_one, &mut one.lock()), 2);
    let pending = one.lock().pending();
    assert!(pending.iter().all(|it| it.value.is_none()), "{pending:?}");
    pending.iter().for_each(|entry| one.lock().applied(entry));
    assert!(!one.lock().record_changes(&ended, 2_000, "manager1"));

    // An old copy changes nothing, also after a restart, for which the file holds the removals.
    let saved = serde_json::to_string(&*one.lock()).unwrap();
    let mut restarted: Registers = serde_json::from_str(&saved).unwrap();
    assert!(!restarted.record_changes(&ended, 3_000, "manager1"));
    let old = OrderExchange::new(Registers::default());
    old.lock().record_changes(&drained, 900, "manager3");
    assert_eq!(send(&mut old.outbox(0), &mut restarted), 0);
    restarted.expire(40 * 24 * 3_600_000);
    assert_eq!(send(&mut old.outbox(0), &mut restarted), 2);
}

#[test]
fn an_entry_that_is_not_in_force_yet_is_no_change_after_a_restart() {
    let one = OrderExchange::new(Registers::default());
    let drained = in_force(&["worker1"], &[], &[]);
    assert!(one.lock().record_changes(&drained, 1_000, "manager1"));
    let mut other = Registers::default();
    assert_eq!(send(&mut one.outbox(0), &mut other), 1);
    let saved = serde_json::to_string(&other).unwrap();
    let mut restarted: Registers = serde_json::from_str(&saved).unwrap();
    assert_eq!(restarted.pending().len(), 1);
    assert!(!restarted.record_changes(&OperatorState::default(), 1_001, "manager2"));
    // The peer's own state of the entry does not count here.
    let mut third = Registers::default();
    assert!(third.merge(restarted.pending().remove(0), 0));
    third
        .pending()
        .iter()
        .for_each(|entry| third.applied(entry));
    assert!(!third.merge(restarted.pending().remove(0), 0));
    assert_eq!(third.pending(), []);
}

#[test]
fn entries_are_bounded_and_checked() {
    let exchange = OrderExchange::new(Registers::default());
    let prefixes: Vec<String> = (0..900)
        .map(|it| format!("10.{}.{}.0/24", it / 200, it % 200))
        .collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    exchange
        .lock()
        .record_changes(&in_force(&[], &[], &prefixes), 1, "manager1");
    let mut outbox = exchange.outbox(0);
    let mut frames = 0;
    while let Some(json) = outbox.next() {
        assert!(json.len() <= super::super::wire::MAX_ORDERS_BYTES);
        frames += 1;
    }
    assert!(frames > 1);
    let command = AdminCommand {
        worker: "worker1".to_owned(),
        service: None,
        action: AdminAction::Weight { percent: 5_000 },
        by: "root".to_owned(),
        at_ms: 5,
        reason: None,
    };
    let unsound = serde_json::json!({
        "subject": { "orders": "worker1" },
        "value": { "orders": [command] },
        "stamp": 9, "manager": "manager1",
    });
    let unsound: OrderEntry = serde_json::from_value(unsound).unwrap();
    assert!(!Registers::default().merge(unsound, 0));
}
