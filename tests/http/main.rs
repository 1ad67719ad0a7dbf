//! The manager over HTTP: metrics, health, API, events.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod api;
mod browser;
mod contract;
mod events;
mod fleet;
mod health;
mod metrics;
mod monitoring;
mod page;
mod server;

use std::{process::Command, time::Duration};

use memlb_tests::{Cluster, ClusterOptions, command::output};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const ORIGIN: &str = "http://127.0.0.1:9998";

/// What `curl` got.
struct Answer {
    status: u16,
    /// In lower case up to the colon.
    headers: Vec<String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers
            .iter()
            .find_map(|line| line.strip_prefix(&prefix))
    }
}

fn start(options: ClusterOptions) -> Cluster {
    Cluster::start(&ClusterOptions {
        manager_arguments: [
            vec!["--down-after".into(), "500ms".into()],
            options.manager_arguments,
        ]
        .concat(),
        ..options
    })
    .unwrap()
}

/// Returns a `curl` that asks on the manager's own node.
fn curl(cluster: &Cluster, path: &str) -> Command {
    let mut curl = cluster.topology.manager.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "5"])
        .args(["--path-as-is", &format!("{ORIGIN}{path}")]);
    curl
}

fn get(cluster: &Cluster, path: &str) -> Answer {
    request(cluster, path, &[])
}

/// Asks with further arguments for `curl`.
fn request(cluster: &Cluster, path: &str, arguments: &[&str]) -> Answer {
    let printed = output(curl(cluster, path).arg("--include").args(arguments)).unwrap();
    let (head, body) = printed.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
        None => line.to_owned(),
    });
    Answer {
        status: status.parse().unwrap(),
        headers: headers.collect(),
        body: body.to_owned(),
    }
}
