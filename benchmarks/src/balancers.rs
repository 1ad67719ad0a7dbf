//! Sets up the balancers with which memlb is compared, on the manager's node and as their manuals advise.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use memlb_tests::{
    Node, Process, Topology,
    balancers::{self, forward},
    cluster_options::SERVICE_PORT,
    command::{line, output},
};

/// Interval at which the system of 2018 wrote its configuration and reloaded nginx.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(3);

/// Makes the manager's node the router between the client and the first worker.
pub fn route_through_manager(topology: &Topology) -> Result<()> {
    forward(topology)?;
    let worker = topology.workers.first().context("there is a worker")?;
    route(&topology.client, worker, &topology.manager)?;
    answer_through_manager(topology)
}

/// Translates addresses in netfilter, with a short TIME_WAIT.
pub fn translate(topology: &Topology, worker: SocketAddrV4, directory: &Path) -> Result<()> {
    balancers::translate(topology, &[worker], directory)?;
    // At the default of 120 s the connection tracking table would fill within a run.
    topology.manager.run(
        "sysctl",
        &[
            "--quiet",
            "--write",
            "net.netfilter.nf_conntrack_tcp_timeout_time_wait=10",
        ],
    )?;
    Ok(())
}

/// Sets up IPVS NAT to the worker, which replies through the manager.
pub fn balance_by_ipvs(topology: &Topology, worker: SocketAddrV4) -> Result<()> {
    forward(topology)?;
    let manager = &topology.manager;
    let service = SocketAddrV4::new(manager.address(), SERVICE_PORT);
    balancers::balance_by_ipvs(manager, service, &[worker])?;
    answer_through_manager(topology)
}

/// Routes the first worker's packets to the client through the manager's node.
pub fn answer_through_manager(topology: &Topology) -> Result<()> {
    let worker = topology.workers.first().context("there is a worker")?;
    route(worker, &topology.client, &topology.manager)
}

fn route(from: &Node, to: &Node, gateway: &Node) -> Result<()> {
    let host = format!("{}/32", to.address());
    let gateway = gateway.address().to_string();
    output(from.ip().args(["route", "add", &host, "via", &gateway]))?;
    Ok(())
}

/// nginx as a reverse proxy.
#[derive(Debug)]
pub struct Proxy {
    style: Style,
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// The nginx.conf of the container image of 2018 with its access log, and the generated upstream: a connection to
    /// the worker for each request.
    Of2018,
    /// As nginx's manual advises for upstreams over HTTP/1.1.
    KeptAlive,
}

impl Style {
    /// Returns the directives before the `http` block, in it, in the upstream and in the location.
    fn settings(self) -> [&'static str; 4] {
        match self {
            Self::Of2018 => [
                "worker_processes 1; events { worker_connections 1024; }",
                "log_format main '$remote_addr - $remote_user [$time_local] \"$request\" '
                      '$status $body_bytes_sent \"$http_referer\" '
                      '\"$http_user_agent\" \"$http_x_forwarded_for\"';
    access_log access.log main; sendfile on; keepalive_timeout 65;",
                "",
                "",
            ],
            Self::KeptAlive => [
                "worker_processes auto; events { worker_connections 16384; }",
                "access_log off; sendfile on;",
                "keepalive 64;",
                "proxy_http_version 1.1; proxy_set_header Connection \"\";",
            ],
        }
    }
}

impl Proxy {
    /// Starts nginx on the manager's node, with `worker` as its upstream.
    pub fn start(
        style: Style,
        topology: &Topology,
        worker: SocketAddrV4,
        directory: &Path,
    ) -> Result<(Self, Process)> {
        let proxy = Self {
            style,
            directory: directory.into(),
        };
        proxy.point_to(worker)?;
        let mut nginx = topology.manager.command("nginx");
        proxy.arguments(&mut nginx);
        let log = directory.join("proxy.log");
        let process = Process::start("nginx as a proxy", &mut nginx, &log)?;
        Ok((proxy, process))
    }

    /// Writes the configuration with `worker` as the upstream, for the next reload.
    pub fn point_to(&self, worker: SocketAddrV4) -> Result<()> {
        let at = self.directory.display();
        let [processes, http, upstream, location] = self.style.settings();
        let configuration = format!(
            "daemon off;
user root;
pid {at}/proxy.pid;
error_log stderr error;
{processes}
http {{
    client_body_temp_path {at}/proxy-body;
    proxy_temp_path {at}/proxy-temp;
    fastcgi_temp_path {at}/proxy-fastcgi;
    uwsgi_temp_path {at}/proxy-uwsgi;
    scgi_temp_path {at}/proxy-scgi;
    {http}
    upstream workers {{ server {worker}; {upstream} }}
    server {{
        listen {SERVICE_PORT} backlog=4096;
        location / {{ proxy_pass http://workers; {location} }}
    }}
}}
"
        );
        write(&self.directory, "proxy.conf", &configuration)?;
        Ok(())
    }

    /// Runs `work`, and meanwhile every 3 s what the system of 2018 did: `decide` on a worker, write the configuration,
    /// reload. Returns the number of reloads, too.
    pub fn reload_during<T>(
        &self,
        decide: impl Fn(u32) -> SocketAddrV4 + Send,
        work: impl FnOnce() -> T,
    ) -> Result<(T, u32)> {
        thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            let reloader = scope.spawn(move || -> Result<u32> {
                // Half an interval first: a measurement of one interval then holds one reload.
                let mut wait = RELOAD_INTERVAL / 2;
                let mut reloads = 0;
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    self.point_to(decide(reloads))?;
                    self.reload()?;
                    reloads += 1;
                    wait = RELOAD_INTERVAL;
                }
                Ok(reloads)
            });
            let done = work();
            drop(stop);
            let reloads = reloader
                .join()
                .map_err(|_| anyhow!("the reloading of nginx panicked"))??;
            Ok((done, reloads))
        })
    }

    fn reload(&self) -> Result<()> {
        let mut nginx = Command::new("nginx");
        self.arguments(&mut nginx);
        output(nginx.args(["-s", "reload"])).with_context(|| line(&nginx))?;
        Ok(())
    }

    fn arguments(&self, nginx: &mut Command) {
        nginx
            .args(["-e", "stderr", "-p"])
            .arg(&self.directory)
            .arg("-c")
            .arg(self.directory.join("proxy.conf"));
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = directory.join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
