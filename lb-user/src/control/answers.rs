//! What becomes of each request: asked of the manager's task, read from the maps, put into words.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use lb_core::{AdminCommand, AdminError, ServiceSnapshot, check_reason, unknown_name};
use serde::Serialize;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{DenyAnswer, Offices, Ordered, Request};
use crate::{
    datapath::{Stats, end_connections, read_connections, recount},
    deny::{Denied, DenyList, Prefix},
    explain::Explanation,
    flows::{Client, Filter, Flows},
    history::now_ms,
    manager::{DenyChange, DenyOutcome, Instruction, Obedience, ReloadError, Written},
    status::{Decided, Status},
};

/// How long a disk may take to keep an order.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a request is not answered as it wishes.
pub(super) enum Refusal {
    Usage(anyhow::Error),
    RunTime(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::RunTime(error)
    }
}

impl From<ReloadError> for Refusal {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::RunTime(_) => Self::RunTime(error.into()),
            ReloadError::Configuration(_) | ReloadError::Refused(_) => Self::Usage(error.into()),
        }
    }
}

impl From<AdminError> for Refusal {
    fn from(error: AdminError) -> Self {
        Self::Usage(error.into())
    }
}

/// Answers everything but streams, with one line.
pub(super) async fn reply(
    request: Request,
    user: String,
    offices: Offices,
) -> Result<Vec<u8>, Refusal> {
    match request {
        Request::Status => status(offices).await.map_err(Refusal::from),
        Request::Order {
            worker,
            service,
            order: action,
            reason,
        } => {
            let order = AdminCommand {
                worker,
                service,
                action,
                by: user,
                at_ms: now_ms(),
                reason,
            };
            order_given(order, offices).await
        }
        Request::Deny { prefixes, reason } => deny(prefixes, user, reason, offices).await,
        Request::Allow { prefixes } => allow(prefixes, user, offices).await,
        Request::ListDenied => Ok(line_of(&denied(&offices).await?)?),
        Request::Flows { filter, limit } => flows(filter, limit, offices).await,
        Request::Explain { client, service } => explain(client, service, offices).await,
        Request::Reload => reload(offices).await,
        Request::Events { .. } | Request::Trace(_) => Err(Refusal::RunTime(anyhow::anyhow!(
            "it is answered by a stream"
        ))),
    }
}

/// Asks the manager's task for its view.
pub(super) async fn decided(offices: &Offices) -> Result<Decided> {
    let (question, decided) = oneshot::channel();
    offices
        .questions
        .send(question)
        .await
        .context("the manager stops")?;
    decided.await.context("the manager stops")
}

async fn flows(filter: Filter, limit: usize, offices: Offices) -> Result<Vec<u8>, Refusal> {
    let services = decided(&offices).await?.services;
    is_known(
        &services,
        filter.service.as_deref(),
        filter.worker.as_deref(),
    )?;
    let pin_path = offices.pin_path;
    let flows = tokio::task::spawn_blocking(move || {
        let connections = read_connections(&pin_path)?;
        line_of(&Flows::new(connections, &services, &filter, limit))
    });
    Ok(flows.await.context("read the flows")??)
}

async fn explain(
    client: Client,
    service: Option<String>,
    offices: Offices,
) -> Result<Vec<u8>, Refusal> {
    let services = decided(&offices).await?.services;
    is_known(&services, service.as_deref(), None)?;
    let denied = denied(&offices).await?;
    let denied = denied.of(client.address).map(ToString::to_string);
    let (pin_path, history) = (offices.pin_path, offices.history);
    let explanation = tokio::task::spawn_blocking(move || {
        let connections = read_connections(&pin_path)?;
        let service = service.as_deref();
        let explanation = Explanation::new(client, connections, services, service, &history);
        line_of(&Explanation {
            denied,
            ..explanation
        })
    });
    Ok(explanation.await.context("read the flows")??)
}

/// Refuses names that are nobody's: an empty list would look like an answer.
pub(super) fn is_known(
    services: &[ServiceSnapshot],
    service: Option<&str>,
    worker: Option<&str>,
) -> Result<(), Refusal> {
    let workers = services.iter().flat_map(|it| &it.backends);
    let workers: BTreeSet<&str> = workers.map(|it| it.name.as_str()).collect();
    let services: BTreeSet<&str> = services.iter().map(|it| it.name.as_str()).collect();
    let names = [("service", service, services), ("worker", worker, workers)];
    for (kind, wanted, known) in names {
        if let Some(wanted) = wanted.filter(|wanted| !known.contains(wanted)) {
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Refusal::Usage(anyhow::anyhow!(unknown_name(
                kind, wanted, &known
            ))));
        }
    }
    Ok(())
}

async fn status(offices: Offices) -> Result<Vec<u8>> {
    let decided = decided(&offices).await?;
    let pin_path = offices.pin_path;
    // Reading a full flow table takes a while, and must not hold up a heartbeat.
    tokio::task::spawn_blocking(move || {
        let stats = Stats::read_for_display(&pin_path)?;
        line_of(&Status::new(decided, &stats))
    })
    .await
    .context("read the counters")?
}

async fn order_given(order: AdminCommand, offices: Offices) -> Result<Vec<u8>, Refusal> {
    let text = order.to_string();
    let (reply, obedience) = oneshot::channel();
    offices
        .instructions
        .send(Instruction::Order(order, reply))
        .await
        .context("the manager stops")?;
    let Obedience { obeyed, version } = obedience.await.context("the manager stops")??;
    let not_kept = not_kept(offices.written, version).await;
    let ordered = Ordered {
        order: text,
        without_worker: obeyed.without_worker,
        mind: obeyed.warnings,
        not_kept,
    };
    Ok(line_of(&ordered)?)
}

/// Waits until a version is on disk, or says why it is not.
async fn not_kept(mut written: watch::Receiver<Written>, version: u64) -> Option<String> {
    let kept = written.wait_for(|it| it.version >= version || it.failure.is_some());
    match timeout(PATIENCE, kept).await {
        Ok(Ok(written)) if written.version >= version => None,
        Ok(Ok(written)) => written.failure.clone(),
        Ok(Err(_)) => Some("the manager stops".to_owned()),
        Err(_) => Some("the disk does not answer".to_owned()),
    }
}

async fn deny(
    prefixes: Vec<Prefix>,
    user: String,
    reason: Option<String>,
    offices: Offices,
) -> Result<Vec<u8>, Refusal> {
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
    let change = DenyChange::Add(new.collect());
    let pin_path = offices.pin_path.clone();
    let answer = change_denied(change, offices).await?;
    // Reading the flow tables takes a while, and must not hold up a heartbeat.
    let connections_ended = tokio::task::spawn_blocking(move || {
        let ended = end_connections(&pin_path, &prefixes)?;
        recount(&pin_path)?;
        anyhow::Ok(ended)
    });
    let connections_ended = connections_ended.await.context("end connections")??;
    Ok(line_of(&DenyAnswer {
        connections_ended,
        ..answer
    })?)
}

async fn allow(prefixes: Vec<Prefix>, user: String, offices: Offices) -> Result<Vec<u8>, Refusal> {
    let change = DenyChange::Remove { prefixes, by: user };
    Ok(line_of(&change_denied(change, offices).await?)?)
}

async fn change_denied(change: DenyChange, offices: Offices) -> Result<DenyAnswer, Refusal> {
    let (reply, outcome) = oneshot::channel();
    let instruction = Instruction::Deny(change, reply);
    let sent = offices.instructions.send(instruction).await;
    sent.context("the manager stops")?;
    let outcome = outcome.await.context("the manager stops")?;
    let DenyOutcome {
        changed,
        warnings,
        version,
    } = outcome.map_err(|error| Refusal::Usage(error.into()))?;
    Ok(DenyAnswer {
        changed,
        connections_ended: 0,
        warnings,
        not_kept: not_kept(offices.denied_written, version).await,
    })
}

async fn denied(offices: &Offices) -> Result<DenyList> {
    let (reply, list) = oneshot::channel();
    let sent = offices
        .instructions
        .send(Instruction::ListDenied(reply))
        .await;
    sent.context("the manager stops")?;
    list.await.context("the manager stops")
}

async fn reload(offices: Offices) -> Result<Vec<u8>, Refusal> {
    Ok(line_of(&offices.reloader.reload().await?)?)
}

pub(super) fn line_of(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).context("encode the reply")?;
    line.push(b'\n');
    Ok(line)
}
