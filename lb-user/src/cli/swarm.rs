//! `memlb swarm`: the tasks of a Docker Swarm as workers.

use std::{path::PathBuf, time::Duration};

use memlb::{
    config::check_source,
    swarm::{self, Docker},
    systemd,
    worker_source::SourceClient,
};

use super::{
    error::{CliError, CliResult},
    remote::ControlSocket,
    runtime::block_on,
};

const MIN_INTERVAL: Duration = Duration::from_millis(50);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Give the tasks of a Docker Swarm to the manager as workers
///
/// Runs beside the manager on a machine that is one of Swarm's managers, as a process of its own. Services of Swarm
/// opt in by labels: memlb.service names the service of memlb, which must have "swarm" in its worker_sources;
/// memlb.port is the container's port; memlb.weight is a percentage. Each running task with the network host, or
/// with a port that is published with mode=host, is a worker; its name is its node's host name, or the node's
/// label memlb.name. Tasks on a drained node, and tasks that Swarm stops, get no new connections. While Docker's
/// API does not answer, the last workers stay.
#[derive(clap::Args)]
pub struct Args {
    /// The socket of Docker's API, on one of Swarm's managers
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    docker_socket: PathBuf,

    /// The interval of requests to the API, 50ms to 1m; an event causes one at once
    #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = humantime::parse_duration)]
    interval: Duration,

    /// The source's name, which services name in worker_sources
    #[arg(long, value_name = "NAME", default_value = "swarm")]
    source: String,

    #[command(flatten)]
    socket: ControlSocket,
}

pub fn run(args: Args) -> CliResult {
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&args.interval) {
        return Err(CliError::usage("--interval must be from 50ms to 1m"));
    }
    check_source(&args.source)
        .map_err(|problem| CliError::usage(format!("--source: {problem}")))?;
    let source = SourceClient::new(args.socket.client(), args.source, true);
    block_on(async move {
        systemd::ready();
        swarm::run(Docker::new(args.docker_socket), source, args.interval).await;
        Ok(())
    })
}
