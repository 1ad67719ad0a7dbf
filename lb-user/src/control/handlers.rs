//! Handles requests: calls the manager, and encodes the reply.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::{
    AdminReply, ConfigurationReply, DenyReply, Request, WorkersReply, handover,
    request_error::RequestError,
};
use crate::{
    deny::{Denied, Prefix},
    explain::Explanation,
    flows::{Client, FlowFilter, Flows},
    history::now_ms,
    manager::{CommandReceipt, DenyChange, DenyOutcome, ManagerHandle, SourceUpdate},
};
use lb_core::{AdminCommand, ServiceSnapshot, check_reason, unknown_name};

/// Handles every request with a reply of one line.
pub(super) async fn reply(
    request: Request,
    user: String,
    manager: &ManagerHandle,
) -> Result<Vec<u8>, RequestError> {
    Ok(match request {
        Request::Status => line_of(&manager.status(Duration::ZERO).await?)?,
        Request::Configuration => line_of(&ConfigurationReply {
            toml: manager.configuration().await.to_toml(),
        })?,
        Request::Order {
            worker,
            service,
            order: action,
            reason,
        } => {
            let command = AdminCommand {
                worker,
                service,
                action,
                by: user,
                at_ms: now_ms(),
                reason,
            };
            line_of(&apply_command(command, manager).await?)?
        }
        Request::Deny { prefixes, reason } => {
            line_of(&deny(prefixes, user, reason, manager).await?)?
        }
        Request::Allow { prefixes } => {
            let change = DenyChange::Remove { prefixes, by: user };
            line_of(&change_denied(change, manager).await?)?
        }
        Request::ListDenied => line_of(&manager.denied().await?)?,
        Request::Flows { filter, limit } => flows(filter, limit, manager).await?,
        Request::Explain { client, service } => explain(client, service, manager).await?,
        Request::SetWorkers {
            source,
            list,
            partial,
        } => {
            let update = SourceUpdate {
                source,
                list: Some(list),
                partial,
            };
            line_of(&set_workers(update, manager).await?)?
        }
        Request::RemoveSource { source } => {
            let update = SourceUpdate {
                source,
                list: None,
                partial: false,
            };
            line_of(&set_workers(update, manager).await?)?
        }
        Request::SourceProblem { source, problem } => {
            check_reason(&problem)?;
            line_of(&manager.source_failed(source, problem).await??)?
        }
        Request::HandOver {
            wait_ms,
            force,
            undo,
        } => {
            let wait = Duration::from_millis(wait_ms);
            line_of(&match undo {
                false => handover::hand_over(wait, force, user, manager).await?,
                true => handover::undo(wait, force, user, manager).await?,
            })?
        }
        Request::Reload => line_of(&manager.reload().await?)?,
        Request::Events { .. } | Request::Trace(_) => {
            let error = anyhow!("the reply to this request is a stream");
            return Err(RequestError::RunTime(error));
        }
    })
}

async fn flows(
    filter: FlowFilter,
    limit: usize,
    manager: &ManagerHandle,
) -> Result<Vec<u8>, RequestError> {
    let services = manager.snapshot().await?.services;
    check_names(&services, &filter.service, &filter.worker)?;
    let connections = manager.connections().await?;
    let peers = manager.peers();
    // Naming and sorting many connections takes long, and must not delay heartbeats.
    let flows = spawn_blocking(move || {
        line_of(&Flows::new(connections, &services, &filter, limit).with_peers(&peers))
    });
    Ok(flows.await.context("list the flows")??)
}

async fn explain(
    client: Client,
    service: Option<String>,
    manager: &ManagerHandle,
) -> Result<Vec<u8>, RequestError> {
    let snapshot = manager.snapshot().await?;
    let (services, sources) = (snapshot.services, snapshot.sources);
    check_names(&services, &service, &None)?;
    let denied = manager.denied().await?;
    let denied = denied.of(client.address).map(ToString::to_string);
    let before_ms = now_ms();
    let connections = manager.connections().await?;
    let read_ms = before_ms..=now_ms();
    let history = manager.history().clone();
    let status = manager.totals().await?;
    let explanation = spawn_blocking(move || {
        let service = service.as_deref();
        let explanation =
            Explanation::new(client, connections, &read_ms, services, service, &history)
                .with_absent(&sources)
                .with_peers(&status.peers);
        let mut explanation = Explanation {
            denied,
            ..explanation
        };
        explanation.add_failures(&status);
        line_of(&explanation)
    });
    Ok(explanation.await.context("explain the flows")??)
}

/// Refuses unknown names: an empty reply would look like "no connections".
pub(super) fn check_names(
    services: &[ServiceSnapshot],
    service: &Option<String>,
    worker: &Option<String>,
) -> Result<(), RequestError> {
    let workers = services.iter().flat_map(|it| &it.backends);
    let workers: BTreeSet<&str> = workers.map(|it| it.name.as_str()).collect();
    let services: BTreeSet<&str> = services.iter().map(|it| it.name.as_str()).collect();
    for (kind, wanted, known) in [("service", service, services), ("worker", worker, workers)] {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| !known.contains(wanted)) {
            let known: Vec<&str> = known.into_iter().collect();
            let error = anyhow!(unknown_name(kind, wanted, &known));
            return Err(RequestError::Usage(error));
        }
    }
    Ok(())
}

async fn apply_command(
    command: AdminCommand,
    manager: &ManagerHandle,
) -> Result<AdminReply, RequestError> {
    let order = command.to_string();
    let CommandReceipt { result, saved } = manager.apply_command(command).await??;
    Ok(AdminReply {
        order,
        without_worker: result.without_worker,
        warnings: result.warnings,
        not_saved: saved.failure().await,
    })
}

async fn set_workers(
    update: SourceUpdate,
    manager: &ManagerHandle,
) -> Result<WorkersReply, RequestError> {
    let receipt = manager.set_workers(update).await??;
    Ok(WorkersReply {
        changes: receipt.changes,
        absent: receipt.absent,
        not_saved: match receipt.saved {
            Some(saved) => saved.failure().await,
            None => None,
        },
    })
}

async fn deny(
    prefixes: Vec<Prefix>,
    user: String,
    reason: Option<String>,
    manager: &ManagerHandle,
) -> Result<DenyReply, RequestError> {
    if let Some(reason) = &reason {
        check_reason(reason)?;
    }
    let at_ms = now_ms();
    let new = prefixes.iter().map(|prefix| Denied {
        prefix: *prefix,
        by: user.clone(),
        at_ms,
        reason: reason.clone(),
    });
    let reply = change_denied(DenyChange::Add(new.collect()), manager).await?;
    Ok(DenyReply {
        connections_ended: manager.end_connections(prefixes).await?,
        ..reply
    })
}

async fn change_denied(
    change: DenyChange,
    manager: &ManagerHandle,
) -> Result<DenyReply, RequestError> {
    let outcome = manager.change_denied(change).await?;
    let DenyOutcome {
        changed,
        warnings,
        saved,
    } = outcome.map_err(|error| RequestError::Usage(error.into()))?;
    Ok(DenyReply {
        changed,
        connections_ended: 0,
        warnings,
        not_saved: saved.failure().await,
    })
}

pub(super) fn line_of(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).context("encode the reply")?;
    line.push(b'\n');
    Ok(line)
}
