//! The same workers over IPv6.

use std::{fs, net::SocketAddr};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, client,
    command::output,
    eventually, root_test,
    transfer::{Download, Upload, random_bytes},
};

use crate::scenario::{
    MIB, PATIENCE, SOON, disturb, program, run_scenario_with, service, service6,
};

#[root_test(tc, xdp)]
fn serves_ipv6_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario_with(attach, both_families(), both);
}

#[root_test]
fn answers_pings_at_the_services_addresses() {
    for attach in ["tc", "xdp"] {
        run_scenario_with(attach, both_families(), |cluster| {
            for site in [service(cluster, 80), service6(cluster, 80)] {
                let line = format!("ping -c 3 -i 0.1 -W 5 {}", site.ip());
                let said = output(&mut program(&cluster.topology.client, &line)).unwrap();
                assert!(said.contains("3 received, 0% packet loss"), "{said}");
            }
        });
    }
}

pub fn both_families() -> ClusterOptions {
    ClusterOptions {
        ipv6: true,
        ..ClusterOptions::default()
    }
}

fn both(cluster: &mut Cluster) {
    let blob = random_bytes(7, 32 * MIB);
    let root = cluster.servers[0].root().to_owned();
    fs::write(root.join("blob"), &blob).unwrap();
    let sites = [service(cluster, 80), service6(cluster, 80)];
    let open = |site| Connection::open(&cluster.topology.client, site, PATIENCE).unwrap();
    let mut kept = sites.map(open);
    let begin = || {
        sites.map(|site| {
            let path = format!("/upload/{}", site.is_ipv6());
            let mut upload = Upload::begin(site, &path, &blob, PATIENCE).unwrap();
            upload.send(MIB).unwrap();
            let mut download = Download::begin(site, "/blob", PATIENCE).unwrap();
            download.go_on_to(MIB).unwrap();
            (upload, download)
        })
    };
    let transfers = cluster.topology.client.enter(begin).unwrap();
    disturb(cluster);
    for (upload, download) in transfers {
        assert!(upload.finish().unwrap().starts_with("HTTP/1.1 201"));
        assert!(download.finish().unwrap() == blob, "a download is broken");
    }
    for upload in ["upload/true", "upload/false"] {
        let uploaded = fs::read(root.join(upload)).unwrap();
        assert!(uploaded == blob, "{upload} is broken");
    }
    for (connection, site) in kept.iter_mut().zip(sites) {
        assert_eq!(connection.get("/").unwrap().first_line(), "Worker1");
        wait_for_page(cluster, site, "Worker2");
    }
    // Without worker2, and then without any.
    for (agent, page) in [(1, "Worker1"), (0, "Manager")] {
        cluster.kill_agent(agent).unwrap();
        for site in sites {
            wait_for_page(cluster, site, page);
        }
    }
    for mut connection in kept {
        assert!(connection.get("/").is_err(), "it outlives its worker");
    }
}

fn wait_for_page(cluster: &Cluster, site: SocketAddr, page: &str) {
    eventually(SOON, &format!("{page} at {site}"), || {
        let response = client::get(&cluster.topology.client, site, "/", PATIENCE);
        response.is_ok_and(|response| response.first_line() == page)
    });
}
