//! Brings in force what another manager's operator has ordered.

use std::net::IpAddr;

use anyhow::{Context, Result};
use lb_core::{AdminAction, AdminCommand};

use super::{
    OperatorStateWatch,
    register::{OrderEntry, Subject, Value},
};
use crate::{
    deny::{Denied, Prefix},
    history::now_ms,
    manager::{DenyChange, ManagerHandle},
};

/// Applies an entry as an order of an operator's.
pub async fn apply(
    entry: &OrderEntry,
    in_force: &OperatorStateWatch,
    manager: &ManagerHandle,
) -> Result<()> {
    let by = &entry.manager;
    match (&entry.subject, &entry.value) {
        (Subject::Orders(worker), value) => {
            let wanted = match value {
                Some(Value::Orders(commands)) => commands.as_slice(),
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
        (Subject::Joined(worker), value) => {
            let address = match value {
                Some(Value::Joined(address)) => Some(*address),
                _ => None,
            };
            join(worker, address, in_force, manager).await
        }
        (Subject::Denied(prefix), value) => {
            let wanted = match value {
                Some(Value::Denied(denied)) => Some(denied),
                _ => None,
            };
            deny(*prefix, wanted, by, in_force, manager).await
        }
    }
}

/// Returns the commands that lead from what is in force for a worker to what is wanted.
pub fn commands(
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
        let (now, then) = (of_kind(in_force), of_kind(wanted));
        if now == then {
            continue;
        }
        let is_replaced = |it: &AdminCommand| then.iter().any(|new| new.service == it.service);
        let ends_some = !now.iter().all(is_replaced);
        if ends_some {
            commands.push(removal(end));
        }
        // The general one first: it replaces those of single services.
        let mut then = then;
        then.sort_by(|one, other| one.service.cmp(&other.service));
        let is_new = |it: &AdminCommand| ends_some || !now.contains(it);
        commands.extend(then.into_iter().filter(is_new));
    }
    commands
}

/// Whether `end` ends what `action` sets.
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
    let joined = manager.join(worker.to_owned(), address).await?;
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
