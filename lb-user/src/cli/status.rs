//! `memlb status`, `services` and `workers`: the state of a running manager.

use std::{collections::BTreeSet, path::PathBuf};

use lb_core::{MANAGER, unknown_name};
use memlb::{
    control::{ClientError, Request},
    status::{BackendStatus, ServiceStatus, Status, format_seconds},
};
use serde::Serialize;

use super::{
    error::{CliError, CliResult},
    health,
    pinned::{pinned, pinned_text},
    remote::Remote,
    shorten,
    status_view::{count, heartbeat_age, memory, remark_paint, status_text},
    table::{Cell, Column, Row, table},
    terminal::{Output, Paint},
};

/// Show workers, memory, the selection and its reason, flows and counters
///
/// If no manager answers, it shows the content of the pinned maps, and exits with status 1.
#[derive(clap::Args)]
pub struct Args {
    /// The directory of the pinned maps, read if no manager answers [default: that of /etc/memlb/memlb.toml, else
    /// /sys/fs/bpf/memlb]
    #[arg(long, value_name = "DIRECTORY")]
    pin_path: Option<PathBuf>,

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
pub(super) struct WorkerRow {
    service: String,
    selected: bool,
    #[serde(flatten)]
    backend: BackendStatus,
}

pub fn run(args: &Args) -> CliResult {
    match args.remote.request::<Status>(&Request::Status) {
        Ok(status) => args
            .remote
            .print(&status, |status| status_text(status, Output::stdout())),
        Err(ClientError::Failed(error)) => {
            if let Some(pinned) = pinned(args.pin_path.as_deref()) {
                args.remote
                    .print(&pinned, |pinned| pinned_text(pinned, Output::stdout()))?;
            }
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

pub fn services(args: &ServicesArgs) -> CliResult {
    let status: Status = args.remote.request(&Request::Status)?;
    let services = select_services(status.services, args.service.as_deref())?;
    args.remote.print(&services, |services| {
        services_text(services, Output::stdout())
    })
}

pub(super) fn services_text(services: &[ServiceStatus], output: Output) -> String {
    let row = |service: &ServiceStatus| {
        let flows: u64 = service.backends.iter().map(|it| it.traffic.flows).sum();
        let workers = || service.backends.iter().filter(|it| it.seen.name != MANAGER);
        let (up, all) = (
            workers().filter(|it| it.seen.state.is_up()).count(),
            workers().count(),
        );
        let paint = match (up, all) {
            (0, _) => Paint::Bad,
            (up, all) if up < all => Paint::Warning,
            _ => Paint::Good,
        };
        Row::new(vec![
            Cell::new(service.name.clone()),
            Cell::new(format!("{}/{}", service.address, service.protocol)),
            Cell::new(format!("{up}/{all}")).paint(paint),
            count(flows),
            Cell::new(service.selected.clone()),
            Cell::new(format_seconds(service.since_ms)),
            Cell::new(service.reason.clone()),
        ])
    };
    let columns = [
        Column::name("service", 0),
        Column::name("address", 2),
        Column::figure("up", 0),
        Column::figure("flows", 1),
        Column::name("selected", 0),
        Column::word("for", 0),
        Column::remark("because"),
    ];
    let rows: Vec<Row> = services.iter().map(row).collect();
    table(&columns, &rows, 0, output)
}

pub fn workers(args: &WorkersArgs) -> CliResult {
    let status: Status = args.remote.request(&Request::Status)?;
    let services = select_services(status.services, args.service.as_deref())?;
    let mut rows = worker_rows(services);
    if let Some(wanted) = &args.worker {
        let known = rows.iter().map(|row| row.backend.seen.name.as_str());
        let known: BTreeSet<&str> = known.collect();
        if !known.contains(wanted.as_str()) {
            return Err(unknown("worker", wanted, known.into_iter()));
        }
        rows.retain(|row| row.backend.seen.name == *wanted);
    }
    args.remote
        .print(&rows, |rows| workers_text(rows, Output::stdout()))
}

pub(super) fn worker_rows(services: Vec<ServiceStatus>) -> Vec<WorkerRow> {
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
    rows.collect()
}

pub(super) fn workers_text(rows: &[WorkerRow], output: Output) -> String {
    let columns = [
        Column::name("worker", 0),
        Column::name("service", 0),
        Column::name("address", 5),
        Column::word("state", 0),
        Column::figure("age", 3),
        Column::figure("available", 2),
        Column::figure("share", 1),
        Column::figure("weight", 4),
        Column::figure("flows", 0),
        Column::remark("remarks"),
    ];
    let rows: Vec<Row> = rows.iter().map(worker_row).collect();
    table(&columns, &rows, 0, output)
}

fn worker_row(row: &WorkerRow) -> Row {
    let BackendStatus { seen, traffic } = &row.backend;
    let weight = seen.weight_percent.as_ref().map_or(100, |it| it.value);
    let mut remarks = memlb::status::remarks(seen);
    if seen.unchecked {
        remarks.push("unchecked".to_owned());
    }
    let remarks = remarks.join("; ");
    Row::new(vec![
        Cell::new(seen.name.clone()),
        Cell::new(row.service.clone()),
        Cell::new(seen.address.clone()),
        Cell::new(seen.state.name()).paint(health::paint(seen.state)),
        heartbeat_age(seen.age_ms),
        memory(seen),
        Cell::new(shorten::share(seen.share)),
        Cell::new(format!("{weight}%")),
        count(traffic.flows + traffic.half_open),
        Cell::new(remarks).paint(remark_paint(seen)),
    ])
}

fn select_services(
    services: Vec<ServiceStatus>,
    wanted: Option<&str>,
) -> Result<Vec<ServiceStatus>, CliError> {
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
    CliError::usage(unknown_name(kind, wanted, &known))
}
