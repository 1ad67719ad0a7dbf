//! Failures around a running manager: logged once, tried again, without a loss.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Probe,
    cli::assert_failure,
    client,
    command::output,
    eventually,
    observe::{self, bpftool},
    root_test,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

#[root_test(tc, xdp)]
fn attaches_again_to_an_interface_that_comes_back(attach: &str) {
    let mut cluster = start(&ClusterOptions {
        attach: attach.into(),
        ..ClusterOptions::default()
    });
    let mut kept = Connection::open(&cluster.topology.client, cluster.service(), SOON).unwrap();
    kept.get("/").unwrap();
    for _ in 0..2 {
        let card = cluster.topology.manager.remove_interface("eth1").unwrap();
        let gone = |status: &Value| status["interfaces"][0]["attachment"] == "none";
        cluster.assert_status(SOON, "the interface to be gone", gone);
        cluster.topology.manager.insert_interface(&card).unwrap();
        if attach == "xdp" {
            cluster.topology.prepare_for_xdp().unwrap();
        }
        let back = |status: &Value| status["interfaces"][0]["attachment"] == attach;
        cluster.assert_status(SOON, "the interface to be back", back);
        for worker in ["worker1", "worker2"] {
            cluster.wait_for_state(worker, "up", SOON).unwrap();
        }
        cluster.wait_for_page("Worker1", SOON).unwrap();
    }
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    let log = cluster.manager.as_mut().unwrap().log();
    assert_eq!(log.matches("eth1 is gone").count(), 2, "{log}");
    assert_eq!(log.matches("eth1 is back").count(), 2, "{log}");
    for kind in ["interface_removed", "interface_restored"] {
        cluster.require_events(kind, 2).unwrap();
    }
}

/// As the package's service, which systemd restarts.
#[root_test]
fn a_restarted_service_waits_for_its_interface() {
    let mut cluster = Cluster::with(|it| it.agents = false);
    cluster.kill_manager().unwrap();
    let manager = &cluster.topology.manager;
    let runtime = cluster.paths.directory.join("runtime");
    std::fs::create_dir(&runtime).unwrap();
    let start = || {
        let mut command = cluster.manager_command();
        command.env("RUNTIME_DIRECTORY", &runtime);
        command
    };
    manager
        .run("ip", &["link", "set", "eth1", "down", "name", "eth9"])
        .unwrap();
    let failed = start().output().unwrap();
    assert_failure(&failed, 1, &["interface eth1 does not exist here"]);

    let log = cluster.paths.directory.join("waiting.log");
    let mut waiting = memlb_tests::Process::start("waiting", &mut start(), &log).unwrap();
    waiting
        .wait_for_log(SOON, "waiting for it, checked every second")
        .unwrap();
    manager
        .run("ip", &["link", "set", "eth9", "name", "eth1", "up"])
        .unwrap();
    waiting
        .wait_for_log(SOON, "all interfaces exist now: eth1")
        .unwrap();
    waiting.wait_for_log(SOON, "ready: web").unwrap();
    waiting.terminate(SOON).unwrap();
}

#[root_test]
fn detached_programs_are_attached_again() {
    let cluster = start(&ClusterOptions {
        attach: "xdp".into(),
        ..ClusterOptions::default()
    });
    let links = cluster.paths.pin_path.join("links");
    let mut detached = 0;
    for link in fs::read_dir(&links).unwrap() {
        let path = link.unwrap().path();
        bpftool(&["link", "detach", "pinned", path.to_str().unwrap()]).unwrap();
        detached += 1;
    }
    assert_eq!(detached, 4, "in, out, XDP, and of lo");
    assert_programs_restored(&cluster, &["eth1", "lo"]);
}

#[root_test]
fn removed_filters_are_attached_again() {
    let mut cluster = start(&ClusterOptions::default());
    // As on kernels without tcx.
    cluster.kill_manager().unwrap();
    output(&mut cluster.memlb("unload")).unwrap();
    let mut command = cluster.manager_command();
    command.env("MEMLB_NO_TCX", "1");
    cluster.start_manager_by(&mut command).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let tc = |arguments: &[&str]| cluster.topology.manager.run("tc", arguments).unwrap();
    tc(&["qdisc", "delete", "dev", "eth1", "clsact"]);
    tc(&["filter", "delete", "dev", "lo", "egress"]);
    assert_programs_restored(&cluster, &["eth1", "lo"]);
}

/// The losses are reported, and the service answers again without a restart.
fn assert_programs_restored(cluster: &Cluster, interfaces: &[&str]) {
    let restored = |cluster: &Cluster| {
        let events = cluster.events_of("programs_restored").unwrap();
        let names = events
            .iter()
            .map(|event| event["interface"].as_str().unwrap().to_owned());
        names.collect::<BTreeSet<_>>()
    };
    let expected: BTreeSet<_> = interfaces.iter().map(|name| (*name).to_owned()).collect();
    eventually(SOON, "the programs to be back", || {
        restored(cluster) == expected
    });
    assert_eq!(cluster.page().unwrap(), "Worker1");
    assert_eq!(
        cluster.page_at(&cluster.topology.manager).unwrap(),
        "Worker1"
    );
}

#[root_test]
fn an_interface_is_followed_when_it_is_renamed_and_another_takes_its_name() {
    let mut cluster = start(&ClusterOptions::default());
    let ip = |cluster: &Cluster, line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        cluster.topology.manager.run("ip", &words).unwrap()
    };
    let names = |status: &Value| {
        let interfaces = status["interfaces"].as_array().unwrap().iter();
        let interfaces = interfaces.filter(|it| it["attachment"] == "tc");
        interfaces
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    for line in [
        "link set eth1 down",
        "link set eth1 name old1",
        "link set old1 up",
    ] {
        ip(&cluster, line);
    }
    let is_followed = |status: &Value| names(status) == ["old1"];
    cluster.assert_status(SOON, "the new name", is_followed);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster.require_events("interface_renamed", 1).unwrap();

    // A new card comes by its name, address and link address.
    let old: Value = serde_json::from_str(&ip(&cluster, "-json link show old1")).unwrap();
    let mac = old[0]["address"].as_str().unwrap();
    let switch = format!("{}switch", cluster.paths.prefix);
    for line in [
        "address flush dev old1",
        "link set old1 address 02:00:00:00:99:02",
        &format!("link add eth1 address {mac} type veth peer name new netns {switch}"),
        &format!("-netns {switch} link set new master switch up"),
        "address add 192.168.56.101/24 dev eth1",
        "link set eth1 up",
    ] {
        ip(&cluster, line);
    }
    let are_both = |status: &Value| names(status) == ["old1", "eth1"];
    cluster.assert_status(SOON, "both interfaces", are_both);
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    cluster.wait_for_page("Worker1", SOON).unwrap();
    cluster.require_events("interface_replaced", 1).unwrap();

    // The next manager goes by the configuration.
    cluster.restart_manager().unwrap();
    assert_eq!(names(&cluster.status().unwrap()), ["eth1"]);
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let programs = cluster
        .topology
        .manager
        .run("bpftool", &["net", "show"])
        .unwrap();
    assert!(!programs.contains("old1"), "{programs}");
}

#[root_test]
fn an_interface_is_found_by_its_alternative_name() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    let name = "a-name-longer-than-own-names-may-be";
    let property = ["link", "property", "add", "dev", "eth1", "altname", name];
    cluster.topology.manager.run("ip", &property).unwrap();
    let twice = cluster
        .manager_command()
        .args(["--interface", "eth1", "--interface", name])
        .output();
    assert_failure(&twice.unwrap(), 1, &["is another name of interface eth1"]);
    let mut command = cluster.manager_command();
    command.args(["--interface", name]);
    cluster.start_manager_by(&mut command).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    assert_eq!(cluster.status().unwrap()["interfaces"][0]["name"], "eth1");
    let mut doctor = cluster.configured("doctor");
    let doctor = doctor.args(["--interface", name]).output().unwrap();
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        said.contains("eth1 is up") && !said.contains("does not exist"),
        "{said}"
    );
}

#[root_test]
fn a_full_disk_loses_no_event() {
    let mut cluster = start(&ClusterOptions::default());
    cluster.kill_manager().unwrap();
    let disk = Disk::mount(cluster.paths.directory.join("disk"));
    let log = disk.0.join("events.jsonl");
    fs::remove_file(cluster.paths.event_log()).unwrap();
    symlink(&log, cluster.paths.event_log()).unwrap();
    cluster.start_manager().unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    let filler = disk.0.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    for _ in 0..10 {
        for verb in ["drain", "undrain"] {
            let verb = cluster.memlb(verb).arg("worker2").output().unwrap();
            assert!(verb.status.success(), "{verb:?}");
        }
    }
    assert_eq!(cluster.page().unwrap(), "Worker1");
    let manager = cluster.manager.as_mut().unwrap();
    manager
        .wait_for_log(SOON, "the event log cannot be written")
        .unwrap();
    fs::remove_file(filler).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager
        .wait_for_log(SOON, "the event log can be written again")
        .unwrap();
    assert_eq!(
        manager.log().matches("event log cannot be written").count(),
        1
    );
    // Every line is whole, in order, and there.
    let orders = cluster.require_events("admin_command_applied", 20).unwrap();
    let times: Vec<&str> = orders.iter().filter_map(|it| it["time"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    cluster.kill_manager().unwrap();
}

#[root_test]
fn a_failing_map_write_is_logged_once_and_stops_nothing_else() {
    let mut cluster = start(&ClusterOptions::default());
    let freeze = ["map", "freeze", "pinned", &cluster.map("selection")];
    output(Command::new("bpftool").args(freeze)).unwrap();
    // The selection stays as it is in the kernel; clients are served by it.
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_selection("worker2", SOON).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.wait_for_log(SOON, "of map selection").unwrap();
    let failed = Instant::now();
    eventually(SOON, "some more attempts", || {
        failed.elapsed() > Duration::from_secs(6)
    });
    let log = cluster.manager.as_mut().unwrap().log();
    assert_eq!(log.matches("of map selection").count(), 1, "{log}");
    cluster.require_events("map_write_failed", 1).unwrap();
    assert_eq!(cluster.page().unwrap(), "Worker1");
    // Heartbeats are heard, deaths noticed.
    cluster.kill_agent(1).unwrap();
    cluster.wait_for_state("worker2", "down", SOON).unwrap();
    // The kernel holds by now what the manager wants, so that its next attempt may well
    // be its last; but it cannot know, since nothing of that map can be written at all.
    assert_eq!(cluster.page().unwrap(), "Worker1");
}

#[root_test]
fn entries_for_a_full_map_are_written_when_it_has_room() {
    let mut cluster = start(&ClusterOptions::default());
    let map = cluster.map("services");
    let about = observe::bpftool(&["map", "show", "pinned", &map]).unwrap();
    let size = |what: &str| usize::try_from(about[what].as_u64().unwrap()).unwrap();
    // As many services as fit beside the one there is, none of them anybody's.
    let keys: Vec<Vec<String>> = (1..size("max_entries"))
        .map(|number| {
            let mut key = vec!["255".to_owned(); size("bytes_key")];
            key[0] = number.to_string();
            key
        })
        .collect();
    let value = vec!["0".to_owned(); size("bytes_value")];
    let bpftool = |verb: &str, key: &[String], rest: &[String]| {
        let mut command = Command::new("bpftool");
        command.args(["map", verb, "pinned", &map, "key"]);
        output(command.args(key).args(rest)).unwrap();
    };
    for key in &keys {
        bpftool("update", key, &[&["value".to_owned()][..], &value].concat());
    }
    let file = cluster.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    let other = text[text.find("[[service]]").unwrap()..]
        .replace("\"web\"", "\"other\"")
        .replace(":80\"", ":81\"");
    fs::write(&file, format!("{text}\n{other}")).unwrap();
    output(&mut cluster.memlb("reload")).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.wait_for_log(SOON, "write map services").unwrap();
    let failed = Instant::now();
    eventually(SOON, "some more attempts", || {
        failed.elapsed() > Duration::from_secs(5)
    });
    // What there was goes on meanwhile, and follows decisions.
    assert_eq!(cluster.page().unwrap(), "Worker1");
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    cluster.wait_for_page("Worker2", SOON).unwrap();

    bpftool("delete", &keys[0], &[]);
    let manager = cluster.manager.as_mut().unwrap();
    manager
        .wait_for_log(SOON, "all maps are written again")
        .unwrap();
    let mut address = cluster.service();
    address.set_port(81);
    let client = &cluster.topology.client;
    eventually(SOON, "the new service", || {
        let page = client::get(client, address, "/", SOON);
        page.is_ok_and(|page| page.first_line() == "Worker2")
    });
    let log = cluster.manager.as_mut().unwrap().log();
    assert_eq!(log.matches("write map services").count(), 1, "{log}");
    for kind in ["map_write_failed", "maps_written"] {
        cluster.require_events(kind, 1).unwrap();
    }
}

#[root_test]
fn missing_pins_stop_nothing() {
    let mut cluster = start(&ClusterOptions::default());
    let client = &cluster.topology.client;
    let mut kept = Connection::open(client, cluster.service(), SOON).unwrap();
    let probe = cluster.probe(Duration::from_millis(10)).unwrap();
    let links = cluster.pinned_links().unwrap();
    assert_eq!(links.len(), 3, "in, out, and of lo");
    for entry in fs::read_dir(&cluster.paths.pin_path).unwrap() {
        let path = entry.unwrap().path();
        match path.is_file() {
            true => fs::remove_file(path).unwrap(),
            false => fs::remove_dir_all(path).unwrap(),
        }
    }
    assert!(cluster.pinned_links().unwrap().is_empty());
    // The manager still holds the maps and the links.
    cluster.memory[1].set_available_kb(650 * 1024).unwrap();
    probe
        .wait_for_page("Worker2", Instant::now(), SOON)
        .unwrap();
    cluster.memory[1].set_available_kb(100 * 1024).unwrap();
    probe
        .wait_for_page("Worker1", Instant::now(), SOON)
        .unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    // It puts the pins back, and says so.
    let manager = cluster.manager.as_mut().unwrap();
    manager
        .wait_for_log(SOON, "another program removed the pins")
        .unwrap();
    output(&mut cluster.memlb("status")).unwrap();
    cluster.require_events("pins_restored", 1).unwrap();
    assert_eq!(cluster.pinned_links().unwrap(), links);
    let report = probe.stop().unwrap();
    report.assert_no_failure();
    // So the next manager finds everything.
    cluster.restart_manager().unwrap();
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    assert_eq!(cluster.pinned_links().unwrap(), links);
}

#[root_test]
fn the_lock_follows_a_directory_of_pins_that_was_removed() {
    let mut cluster = start(&ClusterOptions::default());
    let links = cluster.pinned_links().unwrap();
    fs::remove_dir_all(&cluster.paths.pin_path).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager
        .wait_for_log(SOON, "another program removed the pins")
        .unwrap();
    let unload = cluster.memlb("unload").output().unwrap();
    assert_failure(&unload, 1, &["holds the pins", "stop memlb-manager"]);
    assert_eq!(cluster.pinned_links().unwrap(), links);
    let mut doctor = cluster.memlb("doctor");
    doctor.arg("--pin-path").arg(&cluster.paths.pin_path);
    let doctor = doctor.output().unwrap();
    let findings = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(findings.contains("is held by memlb"), "{findings}");
    cluster.require_events("pins_restored", 1).unwrap();
}

/// The workers' kernels take the former link address for reachable, and would for half a minute.
#[root_test]
fn workers_learn_another_link_address_of_the_manager_at_once() {
    let cluster = start(&ClusterOptions::default());
    let manager = &cluster.topology.manager;
    let run = |node: &memlb_tests::Node, line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        node.run("ip", &words).unwrap()
    };
    let address = manager.address();
    for last in 1..4 {
        for worker in &cluster.topology.workers {
            let former = format!(
                "neigh replace {address} dev eth1 lladdr 02:00:00:00:99:0{}",
                last - 1
            );
            run(worker, &format!("{former} nud reachable"));
        }
        run(
            manager,
            &format!("link set eth1 address 02:00:00:00:99:0{last}"),
        );
        let learned = format!("lladdr 02:00:00:00:99:0{last}");
        for worker in &cluster.topology.workers {
            eventually(
                Duration::from_secs(1),
                "the worker to learn the link address",
                || run(worker, &format!("neigh show {address}")).contains(&learned),
            );
        }
    }
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    // A client learns it as from any host.
    run(&cluster.topology.client, "neigh flush dev eth1");
    cluster.wait_for_page("Worker1", SOON).unwrap();
}

#[root_test]
fn a_suspension_of_ten_seconds_marks_no_worker_as_down() {
    let mut cluster = start(&ClusterOptions::default());
    let every = Duration::from_millis(10);
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), every, SOON).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    eventually(SOON * 2, "ten seconds", || {
        stopped.elapsed() > Duration::from_secs(10)
    });
    manager.signal(Signal::SIGCONT).unwrap();
    let continued = Instant::now();
    eventually(SOON, "any deadline to pass", || {
        continued.elapsed() > Duration::from_secs(2)
    });
    assert_eq!(cluster.events_of("worker_down").unwrap(), [Value::Null; 0]);
    let report = probe.stop().unwrap();
    report.assert_no_failure();
    assert_eq!(report.runs().len(), 1, "{:?}", report.runs());
}

fn start(options: &ClusterOptions) -> Cluster {
    Cluster::start_serving(options).unwrap()
}

/// A small disk, gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k", "memlb-tests"];
        output(Command::new("mount").args(options).arg(&at)).unwrap();
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let lazily = Command::new("umount").arg("-l").arg(&self.0).status();
        if !lazily.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}
