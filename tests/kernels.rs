//! The whole system on the running kernel, attached as this kernel allows. `cargo xtask kernels` runs this on older
//! ones, in slow emulated machines with network cards.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Process, Shape, balancers, client,
    cluster_options::worker_name,
    command::output,
    eventually,
    kernel::Series,
    root_test,
    transfer::{Download, random_bytes},
};
use serde_json::Value;

/// Verifying the programs takes an emulated processor minutes.
const START: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(30);
const BULK_BYTES: usize = 4 << 20;

/// tcx came with this one (e420bed02507).
const TCX: Series = Series { major: 6, minor: 6 };

#[root_test]
fn balances_by_tc() {
    let mut cluster = start(Shape::OneArm, "tc");
    is_attached_by_tc(&cluster);
    balances(&mut cluster);
    survives_the_death_of_its_manager(&mut cluster);
    is_attached_by_tc(&cluster);
    leaves_nothing_behind(cluster);
}

#[root_test]
#[ignore = "takes network cards that are joined outside, as `cargo xtask kernels` has them"]
fn balances_by_native_xdp_at_network_cards() {
    let mut cluster = start(Shape::Cards, "auto");
    is_attached_by_tc(&cluster);
    is_attached_by_xdp(&cluster);
    balances(&mut cluster);
    let sent = sent_by_xdp(&cluster);
    let least = u64::try_from(BULK_BYTES / 1500).unwrap();
    assert!(sent > least, "XDP sent {sent} packets, TC the others");
    leaves_nothing_behind(cluster);
}

/// The cut-over and the rollback of docs/switching-to-memlb.md.
#[root_test]
#[ignore = "takes IPVS, which the kernels of `cargo xtask kernels` have"]
fn ipvs_keeps_its_connections_while_memlb_takes_over_and_leaves() {
    let cluster = start(Shape::TwoArm, "tc");
    let client = &cluster.topology.client;
    let blob = random_bytes(1, BULK_BYTES);
    for server in &cluster.servers {
        fs::write(server.root().join("blob"), &blob).unwrap();
    }
    let download = || {
        let begin = || {
            let mut download = Download::begin(SHOP.into(), "/blob", SOON)?;
            download.go_on_to(1 << 16)?;
            Ok::<_, std::io::Error>(download)
        };
        client.enter(begin).unwrap().unwrap()
    };
    let former = cluster.paths.directory.join("keepalived.conf");
    fs::write(&former, keepalived_conf(&cluster)).unwrap();
    let _keepalived = start_keepalived(&cluster, &former);
    eventually(SOON, "IPVS to serve", || {
        client::get(client, SHOP.into(), "/", SOON).is_ok()
    });
    let by_ipvs = download();
    let at_ipvs = || connections_of_ipvs(&cluster);
    let before = at_ipvs();
    assert!(before > 0);

    // memlb serves another service already.
    let file = cluster.paths.directory.join("memlb.toml");
    let original = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        format!("{original}\n{}", imported(&cluster, &former)),
    )
    .unwrap();
    output(&mut cluster.memlb("reload")).unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let [by_memlb, held] = [download(), download()];
    assert_eq!(at_ipvs(), before);
    assert!(by_ipvs.finish().unwrap() == blob);
    assert!(by_memlb.finish().unwrap() == blob);

    fs::write(&file, original).unwrap();
    output(&mut cluster.memlb("reload")).unwrap();
    let again = download();
    assert_eq!(at_ipvs(), before + 1);
    assert!(held.finish().unwrap() == blob);
    assert!(again.finish().unwrap() == blob);
}

/// The service that keepalived serves first.
const SHOP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 56, 150), 80);

fn keepalived_conf(cluster: &Cluster) -> String {
    let nodes = cluster.topology.workers.iter().zip(&cluster.servers);
    let servers = nodes.map(|(node, server)| {
        let (address, port) = (node.address(), server.port());
        format!("    real_server {address} {port} {{\n        TCP_CHECK {{\n        }}\n    }}\n")
    });
    format!(
        "vrrp_instance shop {{
    state MASTER
    interface eth1
    virtual_router_id 51
    priority 100
    virtual_ipaddress {{
        {address}/24
    }}
}}
virtual_server {address} {port} {{
    lb_algo rr
    lb_kind NAT
    protocol TCP
{servers}}}
",
        address = SHOP.ip(),
        port = SHOP.port(),
        servers = servers.collect::<String>()
    )
}

fn start_keepalived(cluster: &Cluster, file: &Path) -> Process {
    balancers::forward(&cluster.topology).unwrap();
    let directory = &cluster.paths.directory;
    let mut keepalived = cluster.topology.manager.command("keepalived");
    keepalived
        .args(["--dont-fork", "--no-syslog", "--log-console", "--use-file"])
        .arg(file);
    for (option, file) in [
        ("--pid", "keepalived.pid"),
        ("--vrrp_pid", "vrrp.pid"),
        ("--checkers_pid", "checkers.pid"),
    ] {
        keepalived.arg(option).arg(directory.join(file));
    }
    let log = directory.join("keepalived.log");
    Process::start("keepalived", &mut keepalived, &log).unwrap()
}

/// The services that memlb makes of keepalived's, for the agents that the cluster has.
fn imported(cluster: &Cluster, former: &Path) -> String {
    let text = output(cluster.memlb("import").arg(former)).unwrap();
    let services = &text[text.find("[[service]]").unwrap()..];
    let workers = cluster.topology.workers.iter().enumerate();
    workers.fold(services.to_owned(), |services, (index, node)| {
        let [imported, agent] = [node.address().to_string(), worker_name(index)]
            .map(|name| format!("name = \"{name}\""));
        assert!(services.contains(&imported), "{services}");
        services.replace(&imported, &agent)
    })
}

/// How many connections IPVS knows, those of the last two minutes that have ended included.
fn connections_of_ipvs(cluster: &Cluster) -> usize {
    let read = || fs::read_to_string("/proc/thread-self/net/ip_vs_conn");
    let connections = cluster.topology.manager.enter(read).unwrap().unwrap();
    let is_connection = |line: &&str| line.starts_with("TCP ");
    connections.lines().filter(is_connection).count()
}

fn start(shape: Shape, attach: &str) -> Cluster {
    let options = ClusterOptions {
        shape,
        attach: attach.into(),
        // What takes long here says nothing of a worker.
        manager_arguments: ["--set", "failover.down_after=4s"]
            .map(str::to_owned)
            .into(),
        patience: START,
        ..ClusterOptions::default()
    };
    Cluster::start(&options).unwrap()
}

fn is_attached_by_tc(cluster: &Cluster) {
    let tcx = Series::running().unwrap() >= TCX;
    for (program, direction) in [("memlb_ingress", "ingress"), ("memlb_egress", "egress")] {
        let pin = cluster.paths.pin_path.join(format!("links/{program}@eth1"));
        assert_eq!(pin.exists(), tcx, "{}", pin.display());
        assert_eq!(filters(cluster, direction).contains(program), !tcx);
    }
}

fn is_attached_by_xdp(cluster: &Cluster) {
    const XDP_ATTACHED_DRV: u64 = 1;
    let mode = &link(cluster)["xdp"]["mode"];
    assert_eq!(mode.as_u64(), Some(XDP_ATTACHED_DRV), "{mode}");
    let interface = &cluster.status().unwrap()["interfaces"][0];
    assert_eq!(interface["attachment"], "xdp", "{interface}");
}

fn balances(cluster: &mut Cluster) {
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let client = &cluster.topology.client;
    let mut kept = cluster.connection_to("Worker1").unwrap();
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");

    let bulk = random_bytes(1, BULK_BYTES);
    fs::write(cluster.servers[1].root().join("bulk"), &bulk).unwrap();
    let download = || Download::begin(cluster.service(), "/bulk", SOON)?.finish();
    assert!(client.enter(download).unwrap().unwrap() == bulk);
    let mut upload = Connection::open(client, cluster.service(), SOON).unwrap();
    assert_eq!(upload.put("/upload/bulk", &bulk).unwrap().status, 201);
    let uploaded = fs::read(cluster.servers[1].root().join("upload/bulk")).unwrap();
    assert!(uploaded == bulk);

    cluster.kill_agent(1).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    cluster.kill_agent(0).unwrap();
    cluster.wait_for_page("Manager", SOON).unwrap();
    assert!(
        kept.get("/").is_err(),
        "a connection goes on with a dead worker"
    );
    cluster.start_agent(0).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

fn survives_the_death_of_its_manager(cluster: &mut Cluster) {
    let mut kept = cluster.connection_to("Worker1").unwrap();
    cluster.kill_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(cluster.page().unwrap(), "Worker1");
    cluster.start_manager().unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

fn leaves_nothing_behind(mut cluster: Cluster) {
    cluster.kill_manager().unwrap();
    output(&mut cluster.memlb("unload")).unwrap();
    for direction in ["ingress", "egress"] {
        let filters = filters(&cluster, direction);
        assert!(!filters.contains("memlb"), "{filters}");
    }
    assert_eq!(link(&cluster)["xdp"], Value::Null);
    assert!(!cluster.paths.pin_path.exists());
}

/// What TC has at the manager's interface, beside tcx.
fn filters(cluster: &Cluster, direction: &str) -> String {
    let arguments = ["filter", "show", "dev", "eth1", direction];
    cluster.topology.manager.run("tc", &arguments).unwrap()
}

fn link(cluster: &Cluster) -> Value {
    let mut ip = cluster.topology.manager.ip();
    let links = output(ip.args(["-details", "-json", "link", "show", "eth1"])).unwrap();
    serde_json::from_str::<Value>(&links).unwrap()[0].take()
}

/// The packets that the XDP program has sent back out of the card, as the driver counts them.
fn sent_by_xdp(cluster: &Cluster) -> u64 {
    let arguments = ["--statistics", "eth1"];
    let counters = cluster.topology.manager.run("ethtool", &arguments).unwrap();
    let received = counters
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rx"));
    let sent = received.filter_map(|counter| counter.split_once("xdp_tx: "));
    sent.map(|(_, packets)| packets.parse::<u64>().unwrap())
        .sum()
}
