//! iperf3 in both directions, and a gibibyte with a checksum at both ends.

use std::process::Command;

use memlb_tests::{Cluster, Process, command::output, eventually, root_test};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scenario::{MIB, PATIENCE, SOON, disturb, program, run_scenario, service, worker1};

const IPERF: u16 = 5201;

#[root_test(tc, xdp)]
fn carries_iperf3_both_ways(attach: &str) {
    run_scenario(attach, &[IPERF], iperf);
}

fn iperf(cluster: &mut Cluster) {
    let site = service(cluster, IPERF).ip();
    for (way, sums) in [
        ("", &["sum_received"][..]),
        ("--reverse", &["sum_received"]),
        ("--bidir", &["sum_received", "sum_received_bidir_reverse"]),
    ] {
        // A server that still ends one test refuses the next: each has its own.
        let line = format!("iperf3 --server --one-off --forceflush --port {IPERF}");
        let worker = &cluster.topology.workers[0];
        let log = cluster.paths.directory.join(format!("iperf3{way}.log"));
        let mut server = Process::start("iperf3", &mut program(worker, &line), &log).unwrap();
        server.wait_for_log(SOON, "Server listening").unwrap();

        let line = format!("iperf3 --client {site} --json --parallel 4 --time 1 {way}");
        let report = output(&mut program(&cluster.topology.client, &line)).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        // iperf3 that writes JSON ends with 0 even so.
        assert_eq!(report["error"], Value::Null, "{way}: {}", server.log());
        for sum in sums {
            let received = &report["end"][sum];
            println!("{way} {sum}: {received}");
            // Even a busy machine is faster than that.
            let bytes = received["bytes"].as_u64().unwrap();
            assert!(bytes > 10 * MIB as u64, "{way} {sum}: {bytes} bytes only");
        }
        assert!(server.wait(SOON).unwrap().success());
    }
}

#[root_test(tc, xdp)]
fn carries_a_gibibyte_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[], gibibyte);
}

/// The checksum is taken where the bytes are made, and again where they arrive.
fn gibibyte(cluster: &mut Cluster) {
    const SUM: &str = "openssl dgst -r -sha256";
    let file = cluster.servers[0].root().join("gibibyte");
    let make = format!(
        "head --bytes=1G /dev/urandom | tee {} | {SUM}",
        file.display()
    );
    let sent = output(Command::new("sh").args(["-c", &make])).unwrap();
    let site = service(cluster, 80);
    let receive = format!("curl --silent --show-error --fail http://{site}/gibibyte | {SUM}");
    let mut download = cluster.topology.client.command("sh");
    let log = cluster.paths.directory.join("curl.log");
    let mut download = Process::start("curl", download.args(["-c", &receive]), &log).unwrap();
    eventually(PATIENCE, "the first 64 MiB", || {
        worker1(cluster, 80, "bytes_out") > 64 * MIB as u64
    });
    download.signal(Signal::SIGSTOP).unwrap();
    disturb(cluster);
    let so_far = worker1(cluster, 80, "bytes_out");
    assert!(so_far < 900 * MIB as u64, "{so_far} bytes came before");
    download.signal(Signal::SIGCONT).unwrap();
    assert!(download.wait(4 * PATIENCE).unwrap().success());
    assert_eq!(download.log(), sent);
    assert!(worker1(cluster, 80, "bytes_out") > 1 << 30);
}
