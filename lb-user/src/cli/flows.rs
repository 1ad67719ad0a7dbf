//! `memlb flows` and `memlb explain`: single connections, and the reasons for their workers.

use memlb::{
    control::Request,
    explain::{Explanation, failures_of},
    flows::{Client, FlowFilter, FlowRow, Flows},
    status::{Status, format_seconds},
    trace::Clients,
};

use super::{
    error::CliResult,
    remote::Remote,
    status_view::bytes,
    table::{Cell, Column, Row, table},
    terminal::Output,
};

/// List connections: client, worker, age, traffic
#[derive(clap::Args)]
pub struct Args {
    /// Only connections of these clients
    #[arg(long, value_name = "ADDRESS[/LENGTH][:PORT]")]
    client: Option<Clients>,

    /// Only connections to this worker
    #[arg(long)]
    worker: Option<String>,

    /// Only connections to this service
    #[arg(long)]
    service: Option<String>,

    /// Also connections that have ended, while the table still has them
    #[arg(long)]
    ended: bool,

    /// List at most COUNT connections, the newest ones
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1000)]
    limit: usize,

    #[command(flatten)]
    remote: Remote,
}

/// Explain which worker a client's connections went to, why, and where the next one would go
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// The client, or one of its connections
    #[arg(value_name = "ADDRESS[:PORT]")]
    client: Client,

    /// Only connections to this service
    #[arg(long)]
    service: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: Args) -> CliResult {
    let (service, worker) = (args.service.clone(), args.worker.clone());
    let flows: Flows = args.remote.request(&Request::Flows {
        filter: FlowFilter {
            client: args.client,
            worker: args.worker,
            service: args.service,
            ended: args.ended,
        },
        limit: args.limit,
    })?;
    let failed = match args.ended && !args.remote.json {
        true => failed(&args.remote.request(&Request::Status)?, service, worker),
        false => String::new(),
    };
    args.remote.print(&flows, |flows| {
        let output = Output::stdout();
        flows_text(flows, output) + &output.wrap_lines(&failed)
    })
}

/// The failed handshakes, by service and worker.
fn failed(status: &Status, service: Option<String>, worker: Option<String>) -> String {
    let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|it| it == name);
    let services = status.services.iter().filter(|it| is(&service, &it.name));
    let lines = services.flat_map(|it| {
        let workers = failures_of(it).into_iter();
        let workers = workers.filter(|(name, _)| is(&worker, name));
        workers.map(|(name, failures)| format!("{}, {name}: {failures}\n", it.name))
    });
    lines.collect()
}

pub(super) fn flows_text(flows: &Flows, output: Output) -> String {
    let is_any_of_peer = flows.flows.iter().any(|it| it.admitted_by.is_some());
    let row = |row: &FlowRow| {
        let mut cells = vec![
            Cell::new(row.client.clone()),
            Cell::new(row.protocol.to_string()),
            Cell::new(row.service.clone()),
            Cell::new(row.worker.as_deref().unwrap_or("(removed)")),
            Cell::new(row.worker_address.clone()),
            Cell::new(row.state.name()),
            Cell::new(format_seconds(row.age_ms)),
            Cell::new(format_seconds(row.idle_ms)),
            bytes(row.bytes_in),
            bytes(row.bytes_out),
        ];
        cells.extend(is_any_of_peer.then(|| Cell::new(row.admitted_by.as_deref().unwrap_or("-"))));
        Row::new(cells)
    };
    let mut columns = vec![
        Column::name("client", 0),
        Column::word("protocol", 7),
        Column::name("service", 5),
        Column::name("worker", 0),
        Column::name("address", 6),
        Column::word("state", 0),
        Column::figure("age", 1),
        Column::figure("idle", 2),
        Column::figure("in", 3),
        Column::figure("out", 3),
    ];
    if is_any_of_peer {
        columns.push(Column::name("admitted by", 1));
    }
    let rows: Vec<Row> = flows.flows.iter().map(row).collect();
    let mut text = table(&columns, &rows, 0, output);
    if flows.total > rows.len() {
        text += &format!("{} of {}; see --limit\n", rows.len(), flows.total);
    }
    text
}

pub fn explain(args: &ExplainArgs) -> CliResult {
    let explanation: Explanation = args.remote.request(&Request::Explain {
        client: args.client,
        service: args.service.clone(),
    })?;
    args.remote.print(&explanation, |explanation| {
        Output::stdout().wrap_lines(&explanation.to_string())
    })
}
