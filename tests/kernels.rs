//! The whole system on the kernel at hand, whichever it is: attached as this kernel allows, and at work.
//! `cargo xtask kernels` runs this on older ones, emulated and therefore slow, which have network cards.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, time::Duration};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Shape,
    command::output,
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
    outlives_its_manager(&mut cluster);
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

fn outlives_its_manager(cluster: &mut Cluster) {
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
