//! Applies the orders of another manager's operator to this manager.

use std::net::IpAddr;

use anyhow::{Context, Result};
use lb_core::{AdminAction, AdminCommand, AdminOverrides};
use tokio::sync::watch;

use super::super::{DenyChange, ManagerHandle};
use crate::{
    deny::{Denied, DenyList, Prefix},
    history::now_ms,
    membership::Membership,
    peer::{OrderEntry, OrderValue, Subject},
};

/// What is in force on this manager, each with its version number.
#[derive(Debug)]
pub(in crate::manager) struct OperatorStateWatch {
    pub overrides: watch::Receiver<(u64, AdminOverrides)>,
    pub membership: watch::Receiver<(u64, Membership)>,
    pub denied: watch::Receiver<(u64, DenyList)>,
}

/// Applies an entry by the commands that an operator would give.
pub(super) async fn apply(
    entry: &OrderEntry,
    in_force: &OperatorStateWatch,
    manager: &ManagerHandle,
) -> Result<()> {
    let by = &entry.manager;
    let value = entry.value.as_ref();
    match &entry.subject {
        Subject::Orders(worker) => {
            let wanted = match value {
                Some(OrderValue::Orders(commands)) => commands.as_slice(),
                _ => &[],
            };
            let orders = in_force.overrides.borrow().1.commands();
            let orders = orders.into_iter().filter(|it| it.worker == *worker);
            let orders: Vec<AdminCommand> = orders.collect();
            for command in commands(worker, &orders, wanted, by) {
                manager.apply_command(command).await??;
            }
            Ok(())
        }
        Subject::Joined(worker) => {
            let address = match value {
                Some(OrderValue::Joined(address)) => Some(*address),
                _ => None,
            };
            join(worker, address, in_force, manager).await
        }
        Subject::Denied(prefix) => {
            let wanted = match value {
                Some(OrderValue::Denied(denied)) => Some(denied),
                _ => None,
            };
            deny(*prefix, wanted, by, in_force, manager).await
        }
    }
}

/// Returns the commands that turn a worker's orders `in_force` into `wanted`.
fn commands(
    worker: &str,
    in_force: &[AdminCommand],
    wanted: &[AdminCommand],
    by: &str,
) -> Vec<AdminCommand> {
    let removal = |action| AdminCommand {
        worker: worker.to_owned(),
        service: None,
        action,
        by: by.to_owned(),
        at_ms: now_ms(),
        reason: None,
    };
    let mut commands = Vec::new();
    for end in [
        AdminAction::Undrain,
        AdminAction::Weight { percent: 100 },
        AdminAction::Resume,
    ] {
        let of_kind = |orders: &[AdminCommand]| -> Vec<AdminCommand> {
            let same = orders.iter().filter(|it| ends(end, it.action));
            same.cloned().collect()
        };
        let (now, mut then) = (of_kind(in_force), of_kind(wanted));
        if now == then {
            continue;
        }
        let is_replaced = |it: &AdminCommand| then.iter().any(|new| new.service == it.service);
        let is_ended = !now.iter().all(is_replaced);
        if is_ended {
            commands.push(removal(end));
        }
        // The order for all services comes first, because it replaces those of single services.
        then.sort_by(|one, other| one.service.cmp(&other.service));
        let is_new = |it: &AdminCommand| is_ended || !now.contains(it);
        commands.extend(then.into_iter().filter(is_new));
    }
    commands
}

/// Whether the action `end` ends the effect of `action`.
fn ends(end: AdminAction, action: AdminAction) -> bool {
    matches!(
        (end, action),
        (AdminAction::Undrain, AdminAction::SetState { .. })
            | (AdminAction::Weight { .. }, AdminAction::Weight { .. })
            | (AdminAction::Resume, AdminAction::Pause { .. })
    )
}

async fn join(
    worker: &str,
    address: Option<IpAddr>,
    in_force: &OperatorStateWatch,
    manager: &ManagerHandle,
) -> Result<()> {
    if in_force.membership.borrow().1.address(worker) == address {
        return Ok(());
    }
    let joined = manager
        .apply_peer_member(worker.to_owned(), address)
        .await?;
    joined.with_context(|| format!("{worker} joined a peer"))
}

async fn deny(
    prefix: Prefix,
    wanted: Option<&Denied>,
    by: &str,
    in_force: &OperatorStateWatch,
    manager: &ManagerHandle,
) -> Result<()> {
    let before = {
        let denied = in_force.denied.borrow();
        denied.1.iter().find(|it| it.prefix == prefix).cloned()
    };
    if before.as_ref() == wanted {
        return Ok(());
    }
    let change = match wanted {
        Some(denied) => DenyChange::Add(vec![denied.clone()]),
        None => DenyChange::Remove {
            prefixes: vec![prefix],
            by: by.to_owned(),
        },
    };
    manager.change_denied(change).await??;
    if wanted.is_some() {
        manager.end_connections(vec![prefix]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::slice;

    use lb_core::AdminState;

    use super::*;

    fn command(service: Option<&str>, action: AdminAction) -> AdminCommand {
        AdminCommand {
            worker: "worker1".to_owned(),
            service: service.map(str::to_owned),
            action,
            by: "root".to_owned(),
            at_ms: 5,
            reason: None,
        }
    }

    const DRAIN: AdminAction = AdminAction::SetState {
        state: AdminState::Drain,
    };

    #[test]
    fn the_commands_lead_from_one_state_to_the_other() {
        let actions = |in_force: &[AdminCommand], wanted: &[AdminCommand]| -> Vec<_> {
            let commands = commands("worker1", in_force, wanted, "manager2");
            commands
                .into_iter()
                .map(|it| (it.service, it.action))
                .collect()
        };
        let drain = command(None, DRAIN);
        let state = AdminState::Maintenance;
        let maintenance = command(None, AdminAction::SetState { state });
        let weight = |service, percent| command(service, AdminAction::Weight { percent });
        assert_eq!(actions(&[], &[]), []);
        assert_eq!(
            actions(slice::from_ref(&drain), slice::from_ref(&drain)),
            []
        );
        assert_eq!(actions(&[], slice::from_ref(&drain)), [(None, DRAIN)]);
        assert_eq!(
            actions(slice::from_ref(&drain), &[]),
            [(None, AdminAction::Undrain)]
        );
        // Never in service between the two.
        assert_eq!(
            actions(&[drain], slice::from_ref(&maintenance)),
            [(None, maintenance.action)]
        );
        let web = Some("web".to_owned());
        assert_eq!(
            actions(
                &[weight(Some("api"), 30), weight(Some("web"), 50)],
                &[weight(None, 70), weight(Some("web"), 50)]
            ),
            [
                (None, AdminAction::Weight { percent: 100 }),
                (None, AdminAction::Weight { percent: 70 }),
                (web, AdminAction::Weight { percent: 50 })
            ]
        );
        let pause = command(None, AdminAction::Pause { for_ms: 9_000 });
        assert_eq!(
            actions(slice::from_ref(&pause), &[]),
            [(None, AdminAction::Resume)]
        );
        assert_eq!(
            actions(&[], slice::from_ref(&pause)),
            [(None, pause.action)]
        );
    }
}
