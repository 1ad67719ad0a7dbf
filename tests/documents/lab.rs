//! The three-node lab, with the paths that documents use.

use std::{fs, path::Path, process::Command, time::Duration};

use memlb_tests::{
    Cluster, ClusterOptions, ClusterPaths, cluster::binary, command::output,
    namespace::unique_prefix,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::location::Location;

const SOON: Duration = Duration::from_secs(10);

const CONFIGURATION: &str = "/etc/memlb/memlb.toml";

/// What an operator comes over from.
const NGINX: &str = "events {}
http {
    upstream web {
        server 192.168.56.103:8081;
        server 192.168.56.104:8082;
    }
    server {
        listen 192.168.56.101:80;
        location / { proxy_pass http://web; }
    }
}
";

pub struct Lab {
    cluster: Cluster,
}

impl Lab {
    pub fn start() -> Self {
        let example = output(Command::new(binary().unwrap()).args(["check", "--example"]));
        fs::write(CONFIGURATION, example.unwrap()).unwrap();
        fs::write("/etc/nginx/nginx.conf", NGINX).unwrap();
        let paths = ClusterPaths {
            prefix: unique_prefix(),
            directory: "/run/memlb".into(),
            pin_path: "/sys/fs/bpf/memlb".into(),
        };
        let options = ClusterOptions {
            configuration: Some(CONFIGURATION.into()),
            ..ClusterOptions::default()
        };
        Self {
            cluster: Cluster::start_at(paths, &options).unwrap(),
        }
    }

    /// Lets the manager and worker1's agent run, except the one that the location says is stopped.
    pub fn set(&mut self, location: Location) {
        let cluster = &mut self.cluster;
        match (location == Location::ManagerAtRest, cluster.manager.take()) {
            (false, None) => cluster.start_manager().unwrap(),
            (true, Some(mut manager)) => {
                manager.terminate(SOON).unwrap();
            }
            (_, manager) => cluster.manager = manager,
        }
        match (location == Location::Worker, cluster.agents[0].take()) {
            (false, None) => cluster.start_agent(0).unwrap(),
            (true, Some(mut agent)) => {
                agent.signal(Signal::SIGTERM).unwrap();
                agent.wait(SOON).unwrap();
            }
            (_, agent) => cluster.agents[0] = agent,
        }
        if location == Location::Manager {
            let up = |status: &Value| status["services"][0]["backends"][0]["state"] == "up";
            cluster.assert_status(SOON, "worker1 to be up", up);
        }
    }

    pub fn on_the_manager(&self, program: &Path) -> Command {
        self.cluster.topology.manager.command(program)
    }

    pub fn on_worker1(&self, program: &Path) -> Command {
        let mut command = self.cluster.topology.workers[0].command("unshare");
        command.args(["--uts", "sh", "-ec", "hostname worker1; exec \"$@\"", "sh"]);
        command.arg(program);
        command
    }
}
