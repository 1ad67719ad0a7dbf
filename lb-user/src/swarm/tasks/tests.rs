use serde_json::{Value, json};

use super::*;

/// As Docker 20.10 answers, without what is not read.
fn node(number: u8) -> Value {
    let manager = match number {
        1 => json!({"Leader": true, "Reachability": "reachable", "Addr": "10.99.0.1:2377"}),
        _ => Value::Null,
    };
    json!({
        "ID": format!("n{number}"),
        "Spec": {"Labels": {}, "Role": "worker", "Availability": "active"},
        "Description": {"Hostname": format!("node{number}"), "Platform": {"OS": "linux"}},
        "Status": {"State": "ready", "Addr": format!("10.99.0.{number}")},
        "ManagerStatus": manager,
    })
}

fn service(name: &str, labels: &Value, ports: &Value) -> Value {
    json!({
        "ID": name,
        "Spec": {"Name": name, "Labels": labels, "Mode": {"Global": {}}},
        "Endpoint": {"Spec": {"Mode": "vip"}, "Ports": ports},
    })
}

fn task(service: &str, slot: u8, node: u8, attached: &Value, ports: &Value) -> Value {
    json!({
        "ID": format!("t{slot}"), "ServiceID": service, "Slot": slot, "NodeID": format!("n{node}"),
        "CreatedAt": format!("2026-11-28T11:39:4{slot}.7Z"),
        "Status": {"State": "running", "Message": "started", "PortStatus": {"Ports": ports}},
        "DesiredState": "running",
        "NetworksAttachments": attached,
    })
}

fn host() -> Value {
    json!([{"Network": {"ID": "4j3b", "Spec": {"Name": "host", "Scope": "swarm"}}}])
}

fn port(mode: &str, target: u16, published: u16) -> Value {
    json!({"Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": mode})
}

/// The workers of three nodes, after a change of the answers.
fn list(services: &[Value], tasks: &[Value], nodes: &[Value]) -> WorkerList {
    let found = list_after(&[], services, tasks, nodes);
    assert!(found.on_down_nodes.is_empty());
    found.list
}

/// The workers of three nodes, after a list that had the workers `known`.
fn list_after(
    known: &[&str],
    services: &[Value],
    tasks: &[Value],
    nodes: &[Value],
) -> SwarmWorkers {
    fn parse<T: serde::de::DeserializeOwned>(values: &[Value]) -> Vec<T> {
        serde_json::from_value(values.into()).unwrap()
    }
    let state = SwarmState {
        services: parse(services),
        nodes: parse(nodes),
        tasks: parse(tasks),
    };
    workers(&state, &known.iter().map(|it| (*it).to_owned()).collect())
}

/// A service with the network `host` at nodes 1 and 2, and one with a published port at node 3.
fn usual() -> (Vec<Value>, Vec<Value>, Vec<Value>) {
    let shop = json!({"memlb.service": "web", "memlb.port": "8081", "memlb.weight": "50%"});
    let published = json!([port("host", 80, 8082)]);
    // Docker names a published port twice.
    let twice = json!([port("host", 80, 8082), port("host", 80, 8082)]);
    let services = vec![
        service("shop", &shop, &Value::Null),
        service("search", &json!({"memlb.service": "search"}), &published),
        service("other", &json!({"owner": "somebody"}), &Value::Null),
    ];
    let tasks = vec![
        task("shop", 1, 1, &host(), &Value::Null),
        task("shop", 2, 2, &host(), &Value::Null),
        task("search", 3, 3, &Value::Null, &twice),
        task("other", 4, 3, &Value::Null, &Value::Null),
    ];
    (services, tasks, (1..=3).map(node).collect())
}

/// The workers as `service/name address weight`, with why they are drained.
fn shown(list: &WorkerList) -> Vec<String> {
    let workers = list.workers.iter();
    workers
        .map(|it| {
            let drain = it.drain.as_ref().map(|it| format!(" ({it})"));
            let (service, name, address) = (&it.service, &it.name, &it.address);
            format!(
                "{service}/{name} {address} {}{}",
                it.weight,
                drain.unwrap_or_default()
            )
        })
        .collect()
}

fn reasons(list: &WorkerList) -> Vec<String> {
    list.absent.iter().map(ToString::to_string).collect()
}

#[test]
fn running_tasks_are_workers() {
    let (services, tasks, nodes) = usual();
    let list = list(&services, &tasks, &nodes);
    assert_eq!(
        shown(&list),
        [
            "search/node3 10.99.0.3:8082 100",
            "web/node1 10.99.0.1:8081 50",
            "web/node2 10.99.0.2:8081 50",
        ]
    );
    assert_eq!(reasons(&list), [""; 0]);
}

#[test]
fn drained_nodes_and_leaving_tasks_drain() {
    let (services, mut tasks, mut nodes) = usual();
    nodes[1]["Spec"]["Availability"] = "drain".into();
    tasks[1]["DesiredState"] = "shutdown".into();
    tasks[0]["DesiredState"] = "shutdown".into();
    let now = list(&services, &tasks, &nodes);
    assert_eq!(
        shown(&now)[1..],
        [
            "web/node1 10.99.0.1:8081 50 (Swarm stops its task)",
            "web/node2 10.99.0.2:8081 50 (node node2 is drained in Swarm)",
        ]
    );
    // The successor takes the place of the task that ends; a task that has ended is gone.
    tasks.push(task("shop", 5, 1, &host(), &Value::Null));
    tasks[1]["Status"]["State"] = "shutdown".into();
    let now = list(&services, &tasks, &nodes);
    assert_eq!(shown(&now)[1..], ["web/node1 10.99.0.1:8081 50"]);
    assert_eq!(reasons(&now), [""; 0]);
    // Docker closes the ports of a task before Swarm reports its end.
    tasks[2]["DesiredState"] = "shutdown".into();
    tasks[2]["Status"]["PortStatus"] = json!({});
    let now = list(&services, &tasks, &nodes);
    assert_eq!(shown(&now), ["web/node1 10.99.0.1:8081 50"]);
    assert_eq!(reasons(&now), [""; 0]);
}

#[test]
fn nodes_exist_until_swarm_reports_them_down() {
    let (services, tasks, mut nodes) = usual();
    // After a change of the leader.
    nodes[0]["Status"]["State"] = "unknown".into();
    nodes[1]["Status"]["State"] = "down".into();
    // Of a manager, the status may have no address.
    nodes[0]["Status"]["Addr"] = "0.0.0.0".into();
    let now = list(&services, &tasks, &nodes);
    assert_eq!(shown(&now)[1..], ["web/node1 10.99.0.1:8081 50"]);
    assert_eq!(
        reasons(&now),
        ["task shop.2 on node2: Swarm reports its node node2 as down"]
    );
}

#[test]
fn a_worker_stays_on_a_node_that_is_down() {
    let (services, mut tasks, mut nodes) = usual();
    nodes[1]["Status"]["State"] = "down".into();
    nodes[2]["Status"]["State"] = "disconnected".into();
    let after = |known: &[&str], tasks: &[Value], nodes: &[Value]| {
        let found = list_after(known, &services, tasks, nodes);
        let kept: Vec<String> = found.on_down_nodes.iter().cloned().collect();
        (shown(&found.list), kept, reasons(&found.list))
    };
    let (now, kept, absent) = after(&["web/node2", "search/node3"], &tasks, &nodes);
    assert_eq!(
        now,
        [
            "search/node3 10.99.0.3:8082 100",
            "web/node1 10.99.0.1:8081 50",
            "web/node2 10.99.0.2:8081 50",
        ]
    );
    assert_eq!(kept, ["search/node3", "web/node2"]);
    assert_eq!(absent, [""; 0]);

    // A worker of another service does not keep it.
    let (now, kept, absent) = after(&["search/node2"], &tasks, &nodes);
    assert_eq!(now, ["web/node1 10.99.0.1:8081 50"]);
    assert_eq!(kept, [""; 0]);
    assert_eq!(
        absent[1],
        "task shop.2 on node2: Swarm reports its node node2 as down"
    );

    // Neither a task that Swarm stops, nor one on a drained node, stays.
    tasks[1]["DesiredState"] = "shutdown".into();
    nodes[2]["Spec"]["Availability"] = "drain".into();
    let (now, kept, absent) = after(&["web/node2", "search/node3"], &tasks, &nodes);
    assert_eq!(now, ["web/node1 10.99.0.1:8081 50"]);
    assert_eq!((kept.len(), absent.len()), (0, 2));

    // The node joined again: its task there takes the place.
    tasks[1]["DesiredState"] = "running".into();
    let mut again = node(4);
    again["Description"]["Hostname"] = "node2".into();
    nodes.push(again);
    tasks.push(task("shop", 5, 4, &host(), &Value::Null));
    let (now, kept, absent) = after(&["web/node2"], &tasks, &nodes);
    assert_eq!(now[1..], ["web/node2 10.99.0.4:8081 50"]);
    assert_eq!((kept.len(), absent.len()), (0, 1));
}

#[test]
fn a_node_has_a_name_and_an_address() {
    let (services, tasks, usual) = usual();
    let reason = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut nodes = usual.clone();
        change(&mut nodes);
        reasons(&list(&services, &tasks, &nodes)).join("\n")
    };
    let found = reason(&|nodes| nodes[1]["Status"]["Addr"] = "0.0.0.0".into());
    assert!(
        found.contains("its node node2 has no address in Swarm"),
        "{found}"
    );
    let found = reason(&|nodes| nodes[1]["Description"]["Hostname"] = "a b".into());
    assert!(found.contains("\"a b\" cannot name a worker"), "{found}");
    let found = reason(&|nodes| nodes[1]["Description"]["Hostname"] = "node1".into());
    assert_eq!(
        found.matches("several nodes have the name node1").count(),
        2,
        "{found}"
    );
    let found = reason(&|nodes| drop(nodes.remove(1)));
    assert!(found.contains("its node is no longer among"), "{found}");
    let found = reason(&|nodes| {
        nodes[1]["Description"]["Hostname"] = "node1".into();
        nodes[1]["Spec"]["Labels"] = json!({"memlb.name": "other"});
    });
    assert_eq!(found, "");
}

#[test]
fn ports_have_to_be_those_of_the_node() {
    let reason = |labels: Value, attached: &Value, asked: &Value, opened: &Value| {
        let services = [service("shop", &labels, asked)];
        let now = list(
            &services,
            &[task("shop", 1, 1, attached, opened)],
            &[node(1)],
        );
        reasons(&now).join("\n")
    };
    let none = &Value::Null;
    let web = || json!({"memlb.service": "web"});
    let at = |port: &str| json!({"memlb.service": "web", "memlb.port": port});
    let mesh = json!([port("ingress", 80, 8090)]);
    let one = json!([port("host", 80, 8082)]);
    let two = json!([port("host", 80, 8082), port("host", 443, 8443)]);
    for (found, says) in [
        (
            reason(web(), &host(), none, none),
            "set the label memlb.port",
        ),
        (reason(web(), none, none, none), "it publishes no port"),
        (reason(web(), none, &one, none), "--bridge=none"),
        (
            reason(web(), none, &mesh, none),
            "its port 8090 is published by the routing mesh",
        ),
        (
            reason(web(), none, &two, &two),
            "it publishes 2 ports: choose",
        ),
        (
            reason(at("8082"), none, &one, &one),
            "set it to the container's port, 80",
        ),
        (
            reason(at("81"), none, &one, &one),
            "it publishes no port 81/tcp with mode=host",
        ),
        (
            reason(at("80/udp"), none, &one, &one),
            "it publishes no port 80/udp",
        ),
    ] {
        assert!(found.contains(says), "{says}: {found}");
    }
    assert_eq!(reason(at("443"), none, &two, &two), "");
}

#[test]
fn invalid_tasks_are_reported() {
    let (mut services, mut tasks, nodes) = usual();
    services[0]["Spec"]["Labels"]["memlb.weigth"] = "5".into();
    // A second service for search, at the same node.
    let blue = json!({"memlb.service": "search", "memlb.port": "9000"});
    services.push(service("blue", &blue, &Value::Null));
    tasks.push(task("blue", 1, 3, &host(), &Value::Null));
    tasks.push(task("search", 8, 2, &Value::Null, &Value::Null));
    tasks[5]["Status"] =
        json!({"State": "pending", "Err": "no suitable node (1 node not available)"});
    tasks[5]["NodeID"] = "".into();
    let now = list(&services, &tasks, &nodes);
    assert_eq!(shown(&now), ["search/node3 10.99.0.3:9000 100"]);
    let found = reasons(&now);
    assert!(
        found[0]
            .starts_with("task search.3 on node3: task blue.1 on node3 is already the worker of")
    );
    assert_eq!(
        found[1],
        "task search.8: Swarm has no node for it: no suitable node (1 node not available)"
    );
    assert!(found[2].starts_with("service shop: "), "{found:?}");
    assert!(
        found[2].ends_with("did you mean memlb.weight?"),
        "{found:?}"
    );
}
