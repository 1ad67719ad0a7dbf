//! The tables within a service: its workers, and the agents that may join.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the documentation is that of the example file"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::error::ProblemKind;
use super::key::{KeyDeclaration, ReloadClass};
use super::kinds::{Flag, HostAddress, Input, Integer, Kind, Networks, Percent, WorkerName, list};
use super::section::{
    Difference, KeyDescription, REWRITE, Section, TableReader, read_table, read_tables, sections,
};

/// The value of a required address that is missing.
pub(super) const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

sections! {
    /// A worker of a service.
    pub struct Worker {
        /// The name in its agent's heartbeats.
        name: String = String::new(), WorkerName, Live, required("\"worker1\"");

        /// The address of its server.
        address: SocketAddr = NO_ADDRESS, HostAddress, Live, required("\"192.168.56.103:8081\"");

        /// Its share compared with equally good workers.
        weight_percent as "weight": u32 = 100, Percent(1..=1_000), Live;

        /// Whether it takes connections only while no other worker can serve.
        backup: bool = false, Flag, Live;

        /// Whether heartbeats are expected. If any service expects them, all services with this worker do.
        agent: bool = true, Flag, Live;

        /// The maximum number of its open connections; 0: no limit.
        max_connections: u32 = 0, Integer(0..=1 << 24), Live;
    }

    /// The agents that become workers when they start: those with a key, in these networks.
    pub struct AutoJoin {
        /// The networks that their heartbeats may come from.
        networks: Vec<IpNet> = Vec::new(), Networks, Live;

        /// The port of their servers; the address is the one that their heartbeats come from.
        port: u16 = 8081, Integer(1..=65_535), Live, required("8081");
    }
}

/// The agents that may join; an empty list of networks means none.
pub(super) struct Joining;

impl Kind for Joining {
    type Value = Option<AutoJoin>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Option<AutoJoin>> {
        if input.given.table().is_err() {
            input.reject(
                ProblemKind::WrongType,
                "this must be a table of networks and a port, in braces",
                "auto_join = { networks = [\"192.168.56.0/24\"], port = 8081 }",
                REWRITE,
            );
            return None;
        }
        let auto_join: AutoJoin = read_table(input.validator, input.path, Some(input.given));
        Some((!auto_join.networks.is_empty()).then_some(auto_join))
    }

    fn to_toml(&self, value: &Option<AutoJoin>) -> String {
        let AutoJoin { networks, port } = value.clone().unwrap_or_default();
        format!("{{ networks = {}, port = {port} }}", list(&networks))
    }
}

/// The workers of a service.
pub(super) struct Workers;

impl Kind for Workers {
    type Value = Vec<Worker>;

    fn read(&self, input: &mut Input<'_, '_>) -> Option<Vec<Worker>> {
        let workers = read_tables(input.validator, input.path, input.given);
        if workers.is_none() {
            input.reject(
                ProblemKind::WrongType,
                "each worker must be a table with a name and an address",
                "workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]",
                REWRITE,
            );
        }
        workers
    }

    fn to_toml(&self, value: &Vec<Worker>) -> String {
        let worker = |it: &Worker| {
            let values = Worker::default().differences(it).into_iter();
            let values: Vec<String> = values
                .map(|it| format!("{} = {}", it.key.name, it.new))
                .collect();
            format!("{{ {} }}", values.join(", "))
        };
        let workers: Vec<String> = value.iter().map(worker).collect();
        format!("[{}]", workers.join(", "))
    }
}
