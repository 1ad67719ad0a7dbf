//! `memlb flows` and `memlb explain`: single connections, and why they are where they are.

use lb_core::Bytes;

use memlb::{
    control::Request,
    explain::Explanation,
    flows::{Client, FlowFilter, FlowRow, Flows},
    trace::Clients,
};

use super::{
    CliResult,
    remote::{Remote, format_seconds},
    table::table,
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

    /// Also connections that have ended, as long as the table has them
    #[arg(long)]
    ended: bool,

    /// List at most COUNT connections, the youngest
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
    let flows: Flows = args.remote.request(&Request::Flows {
        filter: FlowFilter {
            client: args.client,
            worker: args.worker,
            service: args.service,
            ended: args.ended,
        },
        limit: args.limit,
    })?;
    args.remote.print(&flows, |flows| {
        let row = |row: &FlowRow| {
            vec![
                row.client.clone(),
                row.protocol.to_string(),
                row.service.clone(),
                row.worker.clone().unwrap_or_else(|| "(removed)".to_owned()),
                row.worker_address.clone(),
                row.state.name().to_owned(),
                format_seconds(row.age_ms),
                format_seconds(row.idle_ms),
                Bytes(row.bytes_in).to_string(),
                Bytes(row.bytes_out).to_string(),
            ]
        };
        let heads = [
            "client", "protocol", "service", "worker", "address", "state", ">age", ">idle", ">in",
            ">out",
        ];
        let rows: Vec<_> = flows.flows.iter().map(row).collect();
        let mut text = table(&heads, &rows);
        if flows.total > rows.len() {
            text += &format!("{} of {}; see --limit\n", rows.len(), flows.total);
        }
        text
    })
}

pub fn explain(args: &ExplainArgs) -> CliResult {
    let explanation: Explanation = args.remote.request(&Request::Explain {
        client: args.client,
        service: args.service.clone(),
    })?;
    args.remote.print(&explanation, Explanation::to_string)
}
