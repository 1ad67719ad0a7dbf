use super::*;
use crate::{
    config::{Overrides, check_source},
    membership::WorkerChanges,
};

fn file() -> Config {
    let text = r#"
        manager.interfaces = ["eth1"]
        heartbeats.authentication = "enforce"
        limits.backends = 9
        [[service]]
        name = "web"
        address = "192.168.56.101:80"
        fallback = "192.168.56.101:8080"
        workers = [{ name = "worker1", address = "192.168.56.103:8081" }]
        auto_join = { networks = ["192.168.56.200/32"], port = 8081 }
        worker_sources = ["swarm", "file"]
        [[service]]
        name = "api"
        address = "192.168.56.101:81"
        fallback = "192.168.56.101:8080"
        worker_sources = ["swarm"]
        "#;
    Config::parse(text, "memlb.toml", &Overrides::default(), None).unwrap()
}

fn worker(service: &str, name: &str, address: &str) -> ExternalWorker {
    ExternalWorker {
        service: service.to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        weight: 100,
        drain: None,
    }
}

fn list(workers: &[ExternalWorker]) -> WorkerList {
    WorkerList {
        workers: workers.to_vec(),
        absent: Vec::new(),
    }
}

fn problems(source: &str, workers: &[ExternalWorker]) -> Vec<String> {
    let mut external = ExternalWorkers::default();
    external.set(source, list(workers), 0);
    let mut joined = Membership::default();
    let here = [192, 168, 56, 200].into();
    joined = joined.admit(&file(), "joined1", here, 0, |_| true).unwrap();
    let mut applied = external.apply_to(&file(), &joined);
    let absent = applied.absent.remove(source).unwrap();
    absent.into_iter().map(|it| it.reason).collect()
}

#[test]
fn each_bad_worker_has_its_reason() {
    let weightless = ExternalWorker {
        weight: 0,
        ..worker("web", "a", "192.168.56.110:80")
    };
    for (given, says) in [
        (worker("wep", "a", "192.168.56.110:80"), "did you mean web?"),
        (
            worker("web", "a b", "192.168.56.110:80"),
            "cannot name a worker",
        ),
        (worker("web", "manager", "192.168.56.110:80"), "fallback"),
        (worker("web", "a", "192.168.56.110"), "has no port"),
        (worker("web", "a", "192.168.56.110:0"), "port 0"),
        (
            worker("web", "a", "192.168.56.110:70000"),
            "has a port that does not exist",
        ),
        (worker("web", "a", "0.0.0.0:80"), "means any address"),
        (
            worker("web", "a", "192.168.56.101:80"),
            "manager's own address",
        ),
        (worker("web", "a", "[2001:db8::1]:80"), "IPv6"),
        (weightless, "from 1 to 1000 percent"),
        (
            worker("web", "worker1", "192.168.56.110:80"),
            "a worker worker1 already, of the configuration file",
        ),
        (
            worker("web", "a", "192.168.56.103:8081"),
            "worker worker1 has its address 192.168.56.103:8081 already, of the configuration",
        ),
        (
            worker("web", "joined1", "192.168.56.110:80"),
            "joined1 already, that joined by auto_join",
        ),
    ] {
        let found = problems("swarm", std::slice::from_ref(&given));
        assert_eq!(found.len(), 1, "{given:?}: {found:?}");
        assert!(found[0].contains(says), "{given:?}: {}", found[0]);
    }
    let good = worker("api", "a", "192.168.56.110:80");
    let found = problems("file", std::slice::from_ref(&good));
    assert!(
        found[0].contains("accepts no workers of source \"file\""),
        "{found:?}"
    );
    let twice = [good.clone(), worker("api", "a", "192.168.56.111:80")];
    let found = problems("swarm", &twice);
    assert_eq!(found, ["there is a worker a already, of this list"]);
    // One worker may serve several services.
    assert!(problems("swarm", &[good, worker("web", "a", "192.168.56.110:80")]).is_empty());
    for name in ["joined", "configuration", "", "a b"] {
        assert!(check_source(name).is_err(), "{name}");
    }
}

#[test]
fn a_list_leaves_other_workers_alone() {
    let mut external = ExternalWorkers::default();
    let drained = ExternalWorker {
        drain: Some("node2 is drained".to_owned()),
        ..worker("web", "b", "192.168.56.111:80")
    };
    let first = [worker("web", "a", "192.168.56.110:80"), drained];
    external.set("swarm", list(&first), 7);
    external.set("file", list(&[worker("web", "a", "192.168.56.112:80")]), 7);
    let none = Membership::default();
    let old = external.apply_to(&file(), &none);
    // Of two sources, the one whose name comes first has the worker.
    assert_eq!(old.absent["swarm"].len(), 1);
    let reason = &old.absent["swarm"][0].reason;
    assert!(reason.contains("already, of source \"file\""), "{reason}");
    let origin = old.config.origin("web", "b").unwrap();
    assert_eq!(origin.state.as_ref().map(|it| it.at_ms), Some(7));

    // What is taken back makes room for the other source's.
    assert!(external.remove("file"));
    external.set("swarm", list(&first), 9);
    let new = external.apply_to(&file(), &none);
    let origin = new.config.origin("web", "b").unwrap();
    assert_eq!(origin.state.as_ref().map(|it| it.at_ms), Some(7));
    let changes = WorkerChanges::between("swarm", &old.config, &new.config);
    assert_eq!(changes.added, ["web/a at 192.168.56.110:80"]);
    assert!(changes.changed.is_empty() && changes.removed.is_empty());
    let names: Vec<&str> = new.config.services[0]
        .workers
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, ["worker1", "a", "b"]);

    // Both may be said of one worker.
    external.set(
        "swarm",
        list(&[worker("web", "b", "192.168.56.111:81")]),
        11,
    );
    let last = external.apply_to(&file(), &none);
    let changes = WorkerChanges::between("swarm", &new.config, &last.config);
    assert_eq!(changes.removed, ["web/a"]);
    let both = "web/b (address 192.168.56.111:80 -> 192.168.56.111:81, no longer drained)";
    assert_eq!(changes.changed, [both]);
}

#[test]
fn workers_need_room() {
    // "none", two fallbacks and worker1 leave room for five; a joined worker takes one.
    let mut joined = Membership::default();
    let here = [192, 168, 56, 200].into();
    joined = joined.admit(&file(), "joined1", here, 0, |_| true).unwrap();
    let workers = (1..=6).map(|it| worker("api", &format!("a{it}"), &format!("10.0.0.{it}:80")));
    let mut external = ExternalWorkers::default();
    external.set("swarm", list(&workers.collect::<Vec<_>>()), 0);
    let applied = external.apply_to(&file(), &joined);
    let with_joined = joined.apply_to(&applied.config);
    let mut web = with_joined.services[0].workers.iter();
    assert!(web.any(|it| it.name == "joined1"));
    let left_out: Vec<&str> = applied.absent["swarm"]
        .iter()
        .map(|it| it.what.as_str())
        .collect();
    assert_eq!(left_out, ["api/a5", "api/a6"]);
}
