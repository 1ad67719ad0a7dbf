//! Migration from nginx, HAProxy or keepalived to memlb on one machine, and back, as in docs/switching-to-memlb.md.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use memlb_tests::{
    Cluster, ClusterOptions, Shape, client,
    command::run,
    eventually, nginx,
    process::Process,
    root_test,
    transfer::{Download, random_bytes},
};

const SOON: Duration = Duration::from_secs(10);

/// The balancer of before: its configuration, and the log with a line for each connection that has ended.
struct Former {
    configuration: &'static str,
    log: &'static str,
    start: fn(&Cluster, &Path) -> Process,
}

#[root_test]
fn nginx_keeps_its_connections_while_memlb_takes_over_and_leaves() {
    memlb_takes_over_and_leaves(&Former {
        configuration: "nginx.conf",
        log: "access.log",
        start: start_nginx,
    });
}

#[root_test]
fn haproxy_keeps_its_connections_while_memlb_takes_over_and_leaves() {
    memlb_takes_over_and_leaves(&Former {
        configuration: "haproxy.cfg",
        log: "haproxy.log",
        start: start_haproxy,
    });
}

fn memlb_takes_over_and_leaves(former: &Former) {
    let options = ClusterOptions {
        agents: false,
        ..ClusterOptions::default()
    };
    let mut cluster = without_memlb(&options);
    let blob = random_bytes(1, 8 << 20);
    for server in &cluster.servers {
        fs::write(server.root().join("blob"), &blob).unwrap();
    }
    let directory = cluster.paths.directory.join("proxy");
    let _former = (former.start)(&cluster, &directory);
    eventually(SOON, "an answer", || cluster.page().is_ok());
    let by_former = download(&cluster);

    let configuration = directory.join(former.configuration);
    cluster.manager = Some(start_imported(&cluster, &configuration, &directory, &[]));
    let agents: Vec<Process> = (0..2)
        .map(|index| start_agent(&cluster, index, &directory))
        .collect();
    let names = [0, 1].map(|index| name(&cluster, index));
    for name in &names {
        cluster.wait_for_state(name, "up", SOON).unwrap();
    }

    let connections = || {
        let backends = names.iter().map(|name| cluster.backend(name).unwrap());
        backends
            .filter_map(|it| it["connections"].as_u64())
            .sum::<u64>()
    };
    assert_eq!(connections(), 0);
    cluster.page().unwrap();
    let by_memlb = download(&cluster);
    assert_eq!(connections(), 2);
    // Both connections were open while the other balancer took the new ones.
    assert!(by_former.finish().unwrap() == blob);
    assert!(by_memlb.finish().unwrap() == blob);

    let logged = || {
        fs::read_to_string(directory.join(former.log))
            .unwrap()
            .len()
    };
    let logged_before = logged();
    drop(agents);
    cluster.manager = None;
    run(&mut cluster.memlb("unload")).unwrap();
    cluster.page().unwrap();
    eventually(SOON, "the former balancer to serve again", || {
        logged() > logged_before
    });
}

/// keepalived moves the address, and memlb serves it in place of IPVS, which this kernel need not have.
#[root_test]
fn keepalived_keeps_the_address_that_memlb_serves() {
    let mut cluster = without_memlb(&ClusterOptions {
        agents: false,
        shape: Shape::TwoArm,
        ..ClusterOptions::default()
    });
    let directory = cluster.paths.directory.join("keepalived");
    fs::create_dir(&directory).unwrap();
    let file = directory.join("keepalived.conf");
    let instance = "global_defs {\n    vrrp_version 3\n}\nvrrp_instance shop {\n    state MASTER\n    \
                    interface eth1\n    virtual_router_id 51\n    priority 100\n    advert_int 0.1\n    \
                    virtual_ipaddress {\n        192.168.56.150/24\n    }\n}\n";
    let servers: String = (cluster.topology.workers.iter().zip(&cluster.servers))
        .map(|(node, server)| {
            let (address, port) = (node.address(), server.port());
            format!(
                "    real_server {address} {port} {{\n        TCP_CHECK {{\n        }}\n    }}\n"
            )
        })
        .collect();
    let whole = format!(
        "{instance}virtual_server 192.168.56.150 80 {{\n    lb_algo rr\n    lb_kind NAT\n    protocol TCP\n    \
         sorry_server 192.168.56.150 8080\n{servers}}}\n"
    );
    fs::write(&file, instance).unwrap();
    let mut keepalived = cluster.topology.manager.command("keepalived");
    keepalived
        .args(["--dont-fork", "--no-syslog", "--log-console", "--vrrp"])
        .arg("--use-file")
        .arg(&file)
        .arg("--pid")
        .arg(directory.join("keepalived.pid"))
        .arg("--vrrp_pid")
        .arg(directory.join("vrrp.pid"));
    let log = directory.join("keepalived.log");
    let _keepalived = Process::start("keepalived", &mut keepalived, &log).unwrap();
    eventually(SOON, "the address", || {
        let shown = cluster.topology.manager.run("ip", &["address"]);
        shown.is_ok_and(|it| it.contains("192.168.56.150"))
    });

    let former = directory.join("former.conf");
    fs::write(&former, whole).unwrap();
    let interfaces = ["--interface", "eth1", "--interface", "eth2"];
    cluster.manager = Some(start_imported(&cluster, &former, &directory, &interfaces));
    let service = SocketAddr::from(([192, 168, 56, 150], 80));
    let page = || {
        let page = client::get(&cluster.topology.client, service, "/", SOON);
        page.map(|it| it.first_line()).unwrap_or_default()
    };
    eventually(SOON, "the sorry server", || page() == "Manager");
    let _agents = [0, 1].map(|index| start_agent(&cluster, index, &directory));
    for worker in ["Worker1", "Worker2"] {
        eventually(SOON, worker, || page() == worker);
    }
}

/// Starts servers without agents, and no manager.
fn without_memlb(options: &ClusterOptions) -> Cluster {
    let mut cluster = Cluster::start(options).unwrap();
    cluster.kill_manager().unwrap();
    run(&mut cluster.memlb("unload")).unwrap();
    cluster
}

/// Starts HAProxy on the address that memlb will serve.
fn start_haproxy(cluster: &Cluster, directory: &Path) -> Process {
    let servers = cluster.topology.workers.iter().zip(&cluster.servers);
    let servers: String = servers
        .map(|(node, server)| {
            let address = node.address();
            format!("    server {address} {address}:{}\n", server.port())
        })
        .collect();
    let text = format!(
        "defaults\n    mode tcp\n    log stdout format raw local0\n    option tcplog\n    timeout connect 5s\n    \
         timeout client 1m\n    timeout server 1m\nlisten shop\n    bind :80\n    balance leastconn\n{servers}"
    );
    fs::create_dir_all(directory).unwrap();
    let file = directory.join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let mut command = cluster.topology.manager.command("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Process::start("haproxy", &mut command, &directory.join("haproxy.log")).unwrap()
}

/// Starts nginx there.
fn start_nginx(cluster: &Cluster, directory: &Path) -> Process {
    let servers = cluster.topology.workers.iter().zip(&cluster.servers);
    let servers: String = servers
        .map(|(node, server)| format!("        server {}:{};\n", node.address(), server.port()))
        .collect();
    let http = format!(
        "    upstream shop {{\n        least_conn;\n{servers}    }}\n    server {{\n        listen 80;\n        \
         access_log {}/access.log;\n        location / {{ proxy_pass http://shop; }}\n    }}\n",
        directory.display()
    );
    nginx::start(&cluster.topology.manager, &http, directory).unwrap()
}

/// Translates a configuration and starts a manager with it.
fn start_imported(
    cluster: &Cluster,
    former: &Path,
    directory: &Path,
    arguments: &[&str],
) -> Process {
    let configuration = directory.join("memlb.toml");
    run(cluster
        .memlb("import")
        .arg(former)
        .arg("--output")
        .arg(&configuration))
    .unwrap();
    let place = &cluster.paths;
    let mut command = cluster.topology.manager.command(&cluster.binary);
    command.arg("manager").args(arguments);
    for (option, path) in [
        ("--config", &configuration),
        ("--pin-path", &place.pin_path),
        ("--control-socket", &place.control_socket()),
        ("--state-file", &place.state_file()),
        ("--event-log", &place.event_log()),
    ] {
        command.arg(option).arg(path);
    }
    let log = directory.join("manager.log");
    let mut manager = Process::start("memlb manager", &mut command, &log).unwrap();
    manager
        .wait_for_log(Duration::from_secs(60), "ready")
        .unwrap();
    manager
}

/// The name that import gives a server without one.
fn name(cluster: &Cluster, index: usize) -> String {
    cluster.topology.workers[index].address().to_string()
}

fn start_agent(cluster: &Cluster, index: usize, directory: &Path) -> Process {
    let mut command = cluster.topology.workers[index].command(&cluster.binary);
    command
        .args(["agent", "--name", &name(cluster, index), "--manager"])
        .arg(cluster.heartbeat_address().to_string())
        .arg("--memory-file")
        .arg(cluster.memory[index].path());
    let log = directory.join(format!("agent-{index}.log"));
    Process::start("memlb agent", &mut command, &log).unwrap()
}

fn download(cluster: &Cluster) -> Download {
    let server = cluster.service();
    let begin = || {
        let mut download = Download::begin(server, "/blob", SOON)?;
        download.go_on_to(1 << 16)?;
        Ok::<_, std::io::Error>(download)
    };
    cluster.topology.client.enter(begin).unwrap().unwrap()
}
