//! `memlb status`, `services` and `workers`: what a running manager knows.

use std::collections::BTreeMap;

use lb_core::{Bytes, MANAGER, ServiceSnapshot, unknown_name};
use memlb::{
    control::Request,
    status::{Backend, Status},
};
use serde::Serialize;

use super::{
    CliError, CliResult,
    remote::{Remote, format_seconds},
    table::table,
};

/// Show workers, memory, the selection and its reason, flows and counters
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

/// List the services: the serving worker, since when and why
#[derive(clap::Args)]
pub struct ServicesArgs {
    /// Only this service
    service: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// List the workers of every service: state, memory, connections, orders
#[derive(clap::Args)]
pub struct WorkersArgs {
    /// Only this worker
    worker: Option<String>,

    /// Only in this service
    #[arg(long)]
    service: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// A worker in one service.
#[derive(Serialize)]
struct WorkerRow {
    service: String,
    selected: bool,
    #[serde(flatten)]
    backend: Backend,
}

pub fn run(args: &Args) -> CliResult {
    let status: Status = args.remote.request(&Request::Status)?;
    args.remote.print(&status, Status::to_string)
}

pub fn services(args: &ServicesArgs) -> CliResult {
    let status: Status = args.remote.request(&Request::Status)?;
    let services = chosen(status.services, args.service.as_deref())?;
    args.remote.print(&services, |services| {
        let row = |service: &ServiceSnapshot<Backend>| {
            let flows: u64 = service.backends.iter().map(|it| it.traffic.flows).sum();
            let workers = || service.backends.iter().filter(|it| it.seen.name != MANAGER);
            let up = workers().filter(|it| it.seen.state.is_up()).count();
            vec![
                service.name.clone(),
                format!("{}/{}", service.address, service.protocol),
                format!("{up}/{}", workers().count()),
                flows.to_string(),
                service.selected.clone(),
                format_seconds(service.since_ms),
                service.reason.clone(),
            ]
        };
        let rows: Vec<_> = services.iter().map(row).collect();
        table(
            &[
                "service", "address", ">up", ">flows", "selected", "for", "because",
            ],
            &rows,
        )
    })
}

pub fn workers(args: &WorkersArgs) -> CliResult {
    let status: Status = args.remote.request(&Request::Status)?;
    let services = chosen(status.services, args.service.as_deref())?;
    let rows = services.into_iter().flat_map(|service| {
        let name = service.name;
        let workers = service.backends.into_iter();
        workers
            .filter(|backend| backend.seen.name != MANAGER)
            .map(move |backend| WorkerRow {
                service: name.clone(),
                selected: backend.seen.share > 0,
                backend,
            })
    });
    let mut rows: Vec<WorkerRow> = rows.collect();
    if let Some(wanted) = &args.worker {
        let known: BTreeMap<&str, ()> = rows
            .iter()
            .map(|row| (row.backend.seen.name.as_str(), ()))
            .collect();
        if !known.contains_key(wanted.as_str()) {
            return Err(unknown("worker", wanted, known.into_keys()));
        }
        rows.retain(|row| row.backend.seen.name == *wanted);
    }
    args.remote.print(&rows, |rows| {
        let rows: Vec<_> = rows.iter().map(worker_row).collect();
        table(
            &[
                "worker",
                "service",
                "address",
                "state",
                ">age",
                ">available memory",
                ">weight",
                ">flows",
                "remarks",
            ],
            &rows,
        )
    })
}

fn worker_row(row: &WorkerRow) -> Vec<String> {
    let Backend { seen, traffic } = &row.backend;
    let memory = match (seen.memory_available_bytes, seen.memory_total_bytes) {
        (Some(available), Some(total)) => format!("{} of {}", Bytes(available), Bytes(total)),
        (Some(available), None) => Bytes(available).to_string(),
        _ => "-".to_owned(),
    };
    let weight = seen.weight_percent.as_ref().map_or(100, |it| it.value);
    vec![
        seen.name.clone(),
        row.service.clone(),
        seen.address.clone(),
        seen.state.name().to_owned(),
        seen.age_ms
            .map_or("-".to_owned(), |age| format!("{age} ms")),
        memory,
        format!("{weight}%"),
        (traffic.flows + traffic.half_open).to_string(),
        memlb::status::remarks(seen).join("; "),
    ]
}

fn chosen(
    services: Vec<ServiceSnapshot<Backend>>,
    wanted: Option<&str>,
) -> Result<Vec<ServiceSnapshot<Backend>>, CliError> {
    let Some(wanted) = wanted else {
        return Ok(services);
    };
    if !services.iter().any(|service| service.name == wanted) {
        let known = services.iter().map(|service| service.name.as_str());
        return Err(unknown("service", wanted, known));
    }
    let services = services.into_iter();
    Ok(services.filter(|service| service.name == wanted).collect())
}

fn unknown<'a>(kind: &str, wanted: &str, known: impl Iterator<Item = &'a str>) -> CliError {
    let known: Vec<&str> = known.collect();
    CliError::Usage(anyhow::anyhow!(unknown_name(kind, wanted, &known)))
}
