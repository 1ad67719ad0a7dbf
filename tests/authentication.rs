//! Signed heartbeats, and forged, replayed and excessive datagrams.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_core::{BootId, WorkerState};
use memlb::{
    heartbeat::{Heartbeat, MemoryReport, Nonce},
    keys::{self, Key, KeyId},
};
use memlb_tests::{
    Cluster, LossyLink, Process, cluster,
    command::output,
    datagram::{Sender, heartbeat},
    eventually, root_test,
    transfer::random_bytes,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use zeroize::Zeroizing;

const SOON: Duration = Duration::from_secs(5);

fn enforced() -> Cluster {
    Cluster::with(|it| it.authentication = Some("enforce"))
}

fn key(cluster: &Cluster, index: usize) -> Key {
    let name = format!("worker{}", index + 1);
    keys::read_key(&cluster.key_file(index).unwrap(), &name).unwrap()
}

/// A heartbeat that says the worker leaves: were it believed, it would act at once.
fn leaving(worker: &str, boot: u64, seq: u64) -> Heartbeat {
    Heartbeat {
        worker: worker.to_owned(),
        boot: BootId(boot),
        seq,
        interval: Duration::from_millis(100),
        memory: MemoryReport {
            available_bytes: 1 << 20,
            total_bytes: 700 << 20,
            stale_ms: None,
            cgroup: None,
            pressure: None,
        },
        state: WorkerState::Leaving,
        healthy: true,
        checked: false,
        translates: Vec::new(),
        version: "0.1.0".to_owned(),
        pause: None,
        nonce: None,
    }
}

fn refused(status: &Value, reason: &str) -> u64 {
    status["heartbeats"]["refused"][reason]
        .as_u64()
        .unwrap_or(0)
}

fn wait_for_refusals(cluster: &Cluster, reason: &str, count: u64) {
    let what = format!("{count} datagrams to be refused as {reason}");
    cluster.assert_status(SOON, &what, |status| refused(status, reason) >= count);
}

fn assert_nothing_happened(cluster: &Cluster) {
    for alarm in [
        "worker_down",
        "worker_leaving",
        "worker_unhealthy",
        "all_workers_down",
        "agent_restarted",
    ] {
        let events = cluster.events_of(alarm).unwrap();
        assert!(events.is_empty(), "{events:?}");
    }
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["selected"], "worker1");
}

/// Lets the time pass in which a worker that is not heard goes down, and more.
fn outlast_down_after() {
    let begun = Instant::now();
    let longer = Duration::from_millis(2500);
    eventually(SOON, "longer than down_after", || begun.elapsed() > longer);
}

#[root_test]
fn only_correctly_signed_heartbeats_are_accepted() {
    let mut cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    // Each agent was challenged once and then heard; acknowledgements tell the way's length.
    let agent = cluster.agents[0].as_mut().unwrap();
    agent.wait_for_log(SOON, "round trip").unwrap();
    assert!(agent.log().contains("signed with key"), "{}", agent.log());

    let stranger = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let key1 = key(&cluster, 0);
    let key2 = key(&cluster, 1);
    let secret = Zeroizing::new([7; 32]);
    let outsider = Key::new("worker1".to_owned(), key1.id(), &secret);
    let unknown = Key::new("worker1".to_owned(), KeyId(key1.id().0 ^ 1), &secret);
    let goodbye = leaving("worker1", 1, 1);
    let good = goodbye.encode_signed(&key1).unwrap();
    let mut flipped = good.clone();
    flipped[90] ^= 1;
    let sent: [(&str, Vec<u8>); 8] = [
        ("unsigned", goodbye.encode().unwrap()),
        ("unsigned", heartbeat("worker2", 1, 1, 690 * 1024).into()),
        ("unknown_key", goodbye.encode_signed(&unknown).unwrap()),
        ("bad_signature", goodbye.encode_signed(&outsider).unwrap()),
        ("bad_signature", flipped),
        ("bad_signature", good[..good.len() - 1].to_vec()),
        ("bad_envelope", good[..60].to_vec()),
        ("other_workers_key", goodbye.encode_signed(&key2).unwrap()),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (reason, datagram) in &sent {
        stranger.send(datagram).unwrap();
        *expected.entry(*reason).or_insert(0) += 1;
    }
    stranger.send([b' '; 1400]).unwrap();
    wait_for_refusals(&cluster, "oversized", 1);
    let status = cluster.status().unwrap();
    for (reason, count) in expected {
        assert_eq!(refused(&status, reason), count, "{reason}");
    }
    assert_eq!(status["heartbeats"]["authentication"], "enforce");
    // Even the right key needs the manager's own nonce, which only its acknowledgements carry.
    let before = refused(&status, "not_fresh");
    stranger.send(&good).unwrap();
    wait_for_refusals(&cluster, "not_fresh", before + 1);
    assert_nothing_happened(&cluster);
    assert_eq!(cluster.page().unwrap(), "Worker1");

    // Those who may speak are heard at once when they leave.
    assert!(
        cluster.agents[0]
            .as_mut()
            .unwrap()
            .terminate(SOON)
            .unwrap()
            .success()
    );
    cluster.wait_for_page("Worker2", SOON).unwrap();
    cluster.require_events("worker_leaving", 1).unwrap();
}

#[root_test]
fn replayed_heartbeats_are_refused() {
    let mut cluster = Cluster::with(|it| {
        it.authentication = Some("enforce");
        it.agents = false;
    });
    cluster.start_agent(1).unwrap();
    let link =
        LossyLink::create(&cluster.topology.workers[0], cluster.heartbeat_address(), 1).unwrap();
    let start = |cluster: &Cluster| {
        let mut command = cluster.agent_command(0, link.address);
        let log = cluster.paths.directory.join("worker1.log");
        Process::start("agent", &mut command, &log).unwrap()
    };
    let replay = |cluster: &Cluster, recorded: &[Vec<u8>]| {
        let host = &cluster.topology.workers[0];
        let sender = Sender::open(host, cluster.heartbeat_address()).unwrap();
        for datagram in recorded {
            sender.send(datagram).unwrap();
        }
    };
    let mut agent = start(&cluster);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    eventually(SOON, "some heartbeats", || link.datagrams().len() >= 10);

    // The same boot: each was there already, or comes late.
    let first_boot = link.datagrams();
    replay(&cluster, &first_boot);
    wait_for_refusals(&cluster, "reordered", 5);
    // An old boot, with a nonce that still counts.
    agent.kill().unwrap();
    let mut agent = start(&cluster);
    cluster.assert_status(SOON, "the agent's next life", |_| {
        !cluster.events_of("agent_restarted").unwrap().is_empty()
    });
    replay(&cluster, &first_boot);
    wait_for_refusals(&cluster, "old_boot", 5);
    assert!(cluster.events_of("worker_down").unwrap().is_empty());

    // A dead worker is not kept alive by what it said.
    eventually(SOON, "more heartbeats", || {
        link.datagrams().len() >= first_boot.len() + 10
    });
    agent.kill().unwrap();
    let all = link.datagrams();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1800) {
        replay(&cluster, &all[all.len() - 10..]);
        replay(&cluster, &first_boot);
        thread::sleep(Duration::from_millis(50));
    }
    cluster.wait_for_state("worker1", "down", SOON).unwrap();

    // Nor after a restart of the manager, which has forgotten all heartbeats.
    cluster.restart_manager().unwrap();
    cluster.wait_for_state("worker2", "up", SOON).unwrap();
    replay(&cluster, &all);
    wait_for_refusals(&cluster, "not_fresh", all.len() as u64);
    let state = cluster.backend("worker1").unwrap()["state"].clone();
    assert_ne!(state, "up");
    let mut agent = start(&cluster);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    agent.kill().unwrap();
}

#[root_test]
fn the_agent_of_a_restored_machine_continues_with_a_new_boot() {
    let cluster = Cluster::with(|it| {
        it.authentication = Some("enforce");
        it.agents = false;
    });
    let host = &cluster.topology.workers[0];
    let link = LossyLink::create(host, cluster.heartbeat_address(), 1).unwrap();
    let mut command = cluster.agent_command(0, link.address);
    let log = cluster.paths.directory.join("worker1.log");
    let mut agent = Process::start("agent", &mut command, &log).unwrap();
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let before = link.datagrams();
    let (_, json) = before.last().unwrap().split_at(81);
    let said: Value = serde_json::from_slice(json).unwrap();
    let number = |field: &str| u64::from_str_radix(said[field].as_str().unwrap(), 16).unwrap();

    // The manager has heard what the machine's agent said by the time of its restoration.
    let ahead = Heartbeat {
        state: WorkerState::Ready,
        nonce: Some(Nonce(number("nonce"))),
        ..leaving("worker1", number("boot"), 1_000_000)
    };
    let sender = Sender::open(host, cluster.heartbeat_address()).unwrap();
    sender
        .send(ahead.encode_signed(&key(&cluster, 0)).unwrap())
        .unwrap();
    wait_for_refusals(&cluster, "reordered", 5);
    wait_for_refusals(&cluster, "sequence_reset", 1);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    agent.wait_for_log(SOON, "continuing with boot").unwrap();
    cluster.require_events("agent_restarted", 1).unwrap();

    // Recordings bring no worker back after its end.
    agent.kill().unwrap();
    cluster.wait_for_state("worker1", "down", SOON).unwrap();
    let resets = refused(&cluster.status().unwrap(), "sequence_reset");
    for datagram in &before {
        sender.send(datagram).unwrap();
    }
    // The first one carried no nonce.
    wait_for_refusals(&cluster, "sequence_reset", resets + before.len() as u64 - 1);
    assert_eq!(cluster.backend("worker1").unwrap()["state"], "down");
}

#[root_test]
fn an_agent_announces_that_its_worker_will_be_silent() {
    let cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let pause = |arguments: &[&str]| {
        let mut command = cluster.topology.workers[0].command(cluster::binary().unwrap());
        command.args(["agent", "pause"]).args(arguments);
        command.output().unwrap()
    };
    let announced = pause(&["--name", "worker1", "--for", "1m"]);
    assert!(announced.status.success(), "{announced:?}");
    // It was confirmed before the verb returned.
    let worker1 = cluster.backend("worker1").unwrap();
    assert_eq!(worker1["state"], "paused", "{worker1}");
    assert_eq!(worker1["pause"]["by"], "its agent");
    assert_eq!(cluster.page().unwrap(), "Worker2");
    for (arguments, says) in [
        (
            ["--name", "worker7", "--for", "1m"],
            "no agent named worker7",
        ),
        (["--name", "worker1", "--for", "2h"], "expected 1s to 1h"),
    ] {
        let refused = pause(&arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(says), "{said}");
    }
    // A hook without rights gets the reason, each time.
    for _ in 0..10 {
        let mut hook = cluster.topology.workers[0].command("setpriv");
        hook.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(cluster::binary().unwrap())
            .args(["agent", "pause", "--name", "worker1", "--for", "1m"]);
        let refused = hook.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        let says = "only root and the agent's own user may announce a pause";
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[root_test]
fn a_restarted_manager_accepts_heartbeats_within_one_interval() {
    let mut cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    for _ in 0..3 {
        cluster.restart_manager().unwrap();
        let accepted = |status: &Value| {
            let backends = status["services"][0]["backends"].as_array().unwrap();
            backends[..2]
                .iter()
                .all(|backend| backend["age_ms"].is_u64())
        };
        let took = cluster.assert_status(SOON, "both to be heard", accepted);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    outlast_down_after();
    assert_nothing_happened(&cluster);
}

#[root_test]
fn a_long_pause_of_the_manager_marks_no_worker_as_stale_or_down() {
    let mut cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let manager = cluster.manager.as_mut().unwrap();
    manager.signal(Signal::SIGSTOP).unwrap();
    // Longer than a nonce stays the newest.
    let stopped = Instant::now();
    let long = Duration::from_secs(11);
    eventually(3 * SOON, "a long pause", || stopped.elapsed() > long);
    assert_eq!(cluster.page().unwrap(), "Worker1");
    cluster
        .manager
        .as_mut()
        .unwrap()
        .signal(Signal::SIGCONT)
        .unwrap();
    outlast_down_after();
    assert_nothing_happened(&cluster);
    for worker in ["worker1", "worker2"] {
        let age = cluster.backend(worker).unwrap()["age_ms"].as_u64();
        assert!(age.is_some_and(|age| age < 1_000), "{worker}: {age:?}");
    }
    // What had waited in the queue counted, too: each agent was challenged at its start alone.
    let status = cluster.status().unwrap();
    assert_eq!(refused(&status, "not_fresh"), 2, "{status:#}");
}

#[root_test]
fn a_key_is_replaced_without_interruption() {
    let mut cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let old_file = cluster.key_file(0).unwrap();
    let old_key = key(&cluster, 0);
    let new_file = old_file.with_file_name("worker1-new.key");
    let mut keygen = Command::new(&cluster.binary);
    output(
        keygen
            .args(["keygen", "--name", "worker1", "--output"])
            .arg(&new_file),
    )
    .unwrap();
    let reload = |cluster: &Cluster| {
        let mut command = cluster.topology.manager.command(&cluster.binary);
        command.args(["reload", "--control-socket"]);
        output(command.arg(cluster.paths.control_socket())).unwrap()
    };
    let of_worker1 = |what: &str| format!(" of worker1 {what}\n");
    assert!(reload(&cluster).contains(&of_worker1("added")));
    assert_eq!(reload(&cluster), "nothing has changed\n");

    cluster.kill_agent(0).unwrap();
    let mut command = cluster.topology.workers[0].command(&cluster.binary);
    command.args(["agent", "--name", "worker1", "--manager"]);
    command.arg(cluster.heartbeat_address().to_string());
    command.arg("--memory-file").arg(cluster.memory[0].path());
    command.arg("--key").arg(&new_file);
    let log = cluster.paths.directory.join("new-key.log");
    cluster.agents[0] = Some(Process::start("agent with the new key", &mut command, &log).unwrap());
    eventually(SOON, "the agent to be heard with the new key", || {
        cluster.events_of("agent_restarted").unwrap().len() == 1
    });
    let stranger = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let goodbye = leaving("worker1", 1, 1).encode_signed(&old_key).unwrap();
    let challenged = refused(&cluster.status().unwrap(), "not_fresh");
    stranger.send(&goodbye).unwrap();
    wait_for_refusals(&cluster, "not_fresh", challenged + 1);

    fs::remove_file(&old_file).unwrap();
    assert!(reload(&cluster).contains(&of_worker1("removed")));
    stranger.send(&goodbye).unwrap();
    wait_for_refusals(&cluster, "unknown_key", 1);
    outlast_down_after();
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    assert_eq!(cluster.page().unwrap(), "Worker1");

    // A key that somebody else could read stops nothing that runs, and is not believed.
    fs::set_permissions(&new_file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = cluster.topology.manager.command(&cluster.binary);
    command.args(["reload", "--control-socket"]);
    let error = output(command.arg(cluster.paths.control_socket())).unwrap_err();
    assert!(format!("{error:#}").contains("chmod 600"), "{error:#}");
    outlast_down_after();
    assert!(cluster.events_of("worker_down").unwrap().is_empty());

    // Without its last key, its heartbeats will be refused; the reply to the reload says so.
    fs::remove_file(&new_file).unwrap();
    let said = reload(&cluster);
    assert!(said.contains(&of_worker1("removed")), "{said}");
    assert!(said.contains("warning: no key for worker1;"), "{said}");
    cluster.wait_for_page("Worker2", SOON).unwrap();
}

#[root_test]
fn losing_a_third_of_all_datagrams_marks_no_worker_as_down() {
    for authentication in [None, Some("enforce")] {
        let mut cluster = Cluster::with(|it| {
            it.authentication = authentication;
            it.agents = false;
        });
        let mut links = Vec::new();
        for index in [0, 1] {
            let worker = &cluster.topology.workers[index];
            let link =
                LossyLink::create(worker, cluster.heartbeat_address(), index as u64).unwrap();
            link.set_loss(30);
            let mut command = cluster.agent_command(index, link.address);
            let log = cluster.paths.directory.join(format!("agent{index}.log"));
            cluster.agents[index] = Some(Process::start("agent", &mut command, &log).unwrap());
            links.push(link);
        }
        for worker in ["worker1", "worker2"] {
            cluster.wait_for_state(worker, "up", SOON).unwrap();
        }
        cluster.wait_for_page("Worker1", SOON).unwrap();
        // Long enough for the nonce to change twice.
        let begun = Instant::now();
        eventually(5 * SOON, "a while", || {
            begun.elapsed() > Duration::from_secs(22)
        });
        assert_nothing_happened(&cluster);
    }
}

/// How much garbage is sent a second; a busy machine may send a quarter of it.
const FLOOD_RATE: u64 = 110_000;

/// Garbage on its way to the manager.
struct Flood {
    stop: Arc<AtomicBool>,
    begun: Instant,
    /// Returns how many datagrams the kernel took.
    thread: thread::JoinHandle<u64>,
}

impl Flood {
    /// Sends these datagrams in turn, each from the next of `sources`.
    fn start(sources: Vec<Sender>, datagrams: Vec<Vec<u8>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut sources = sources.iter().cycle();
            let mut datagrams = datagrams.iter().cycle();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_millis() as u64 * FLOOD_RATE / 1_000;
                while sent < due && !stopped.load(Ordering::Relaxed) {
                    let (source, datagram) = (sources.next().unwrap(), datagrams.next().unwrap());
                    sent += u64::from(source.send(datagram).is_ok());
                }
                thread::sleep(Duration::from_micros(200));
            }
            sent
        });
        Self {
            stop,
            begun,
            thread,
        }
    }

    /// Ends it; returns how many datagrams were sent, and how many of them a second.
    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().unwrap();
        (sent, sent * 1_000 / self.begun.elapsed().as_millis() as u64)
    }
}

/// Sends garbage for some seconds, in which both workers must be heard all the time. Returns how much
/// was sent, and the status when the manager was through with it.
fn outlast(cluster: &Cluster, sources: Vec<Sender>, datagrams: Vec<Vec<u8>>) -> (u64, Value) {
    let accepted = |status: &Value| status["heartbeats"]["accepted"].as_u64().unwrap();
    let before = accepted(&cluster.status().unwrap());
    let begun = Instant::now();
    let flood = Flood::start(sources, datagrams);
    outlast_down_after();
    outlast_down_after();
    let status = cluster.status().unwrap();
    let heard = accepted(&status) - before;
    let honest = 2 * begun.elapsed().as_millis() as u64 / 100;
    let (sent, rate) = flood.end();
    println!(
        "{rate} datagrams/s, {heard} of {honest} honest heartbeats; {}",
        status["heartbeats"]
    );
    assert!(
        rate >= FLOOD_RATE / 4,
        "only {rate} datagrams/s could be sent"
    );
    assert!(
        heard >= honest / 2,
        "{heard} of {honest} heartbeats: {status:#}"
    );
    assert_nothing_happened(cluster);
    for worker in 0..2 {
        let age = status["services"][0]["backends"][worker]["age_ms"].as_u64();
        assert!(age.is_some_and(|age| age < 1_000), "{status:#}");
    }
    // What is left in the queue is judged before two more heartbeats of each.
    let seen = accepted(&cluster.status().unwrap());
    cluster.assert_status(SOON, "the flood's end", |status| {
        accepted(status) > seen + 10
    });
    (sent, cluster.status().unwrap())
}

#[root_test]
fn a_flood_of_garbage_marks_no_worker_as_down() {
    let cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let known = key(&cluster, 0).id();
    let header = format!("memlb1 {known} {}\n", "0".repeat(64));
    let datagrams = vec![
        [header.as_bytes(), &random_bytes(1, 600)].concat(),
        random_bytes(2, 300),
        heartbeat("worker1", 1, 1, 1024).into_bytes(),
    ];
    // From a worker's own host, and as close to the real thing as one gets without the key.
    let host = &cluster.topology.workers[0];
    let source = Sender::open(host, cluster.heartbeat_address()).unwrap();
    let (sent, status) = outlast(&cluster, vec![source], datagrams);
    let limited = refused(&status, "rate_limited");
    assert!(limited > sent / 4, "of {sent}: {status:#}");
    assert_all_counted(&status, sent);
}

#[root_test]
fn a_flood_of_forged_signatures_from_many_addresses_marks_no_worker_as_down() {
    let cluster = enforced();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    // Each signature must be computed to be refused: the key's id is right, and each source stays
    // below what it may send.
    let secret = Zeroizing::new([7; 32]);
    let forger = Key::new("worker1".to_owned(), key(&cluster, 0).id(), &secret);
    let goodbye = |seq| leaving("worker1", 1, seq).encode_signed(&forger).unwrap();
    let hosts = [&cluster.topology.client].into_iter();
    let hosts = hosts.chain(&cluster.topology.workers);
    let sources = hosts.flat_map(|host| {
        let open = || Sender::open(host, cluster.heartbeat_address()).unwrap();
        (0..250).map(move |_| open())
    });
    let (sent, status) = outlast(&cluster, sources.collect(), (0..100).map(goodbye).collect());
    let forged = refused(&status, "bad_signature");
    assert!(forged > sent / 4, "of {sent}: {status:#}");
    assert_all_counted(&status, sent);
}

/// Expects each datagram of a flood among the refused; the kernel may lose a few on the way.
fn assert_all_counted(status: &Value, sent: u64) {
    let reasons = status["heartbeats"]["refused"].as_object().unwrap();
    let counted: u64 = reasons.values().filter_map(Value::as_u64).sum();
    println!("{counted} of {sent} counted: {reasons:?}");
    assert!(
        counted >= sent - sent / 100,
        "{counted} of {sent}: {reasons:?}"
    );
}

#[root_test]
fn authentication_is_introduced_without_interruption() {
    let mut cluster = Cluster::with(|it| {
        it.authentication = Some("off");
        it.agents = false;
    });
    // worker1 signs already; worker2 has no key yet.
    cluster.start_agent(0).unwrap();
    let mut command = cluster.topology.workers[1].command(&cluster.binary);
    command.args(["agent", "--name", "worker2", "--manager"]);
    command.arg(cluster.heartbeat_address().to_string());
    command.arg("--memory-file").arg(cluster.memory[1].path());
    let log = cluster.paths.directory.join("bare.log");
    cluster.agents[1] = Some(Process::start("bare agent", &mut command, &log).unwrap());
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    cluster.wait_for_page("Worker1", SOON).unwrap();

    change_authentication(&cluster, "off", "permissive");
    cluster.assert_status(SOON, "worker2 to be named", |status| {
        status["heartbeats"]["unsigned"]["worker2"].as_u64() > Some(3)
    });
    let status = cluster.status().unwrap();
    assert!(
        status["heartbeats"]["unsigned"]["worker1"].is_null(),
        "{status:#}"
    );
    let shown = output(&mut cluster.memlb("status")).unwrap();
    assert!(shown.contains("authentication permissive"), "{shown}");
    assert!(shown.contains("not signed yet: worker2 ("), "{shown}");
    // Unsigned datagrams do not count for a worker that signs.
    let stranger = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
    let goodbye = leaving("worker1", 1, 1).encode().unwrap();
    stranger.send(&goodbye).unwrap();
    wait_for_refusals(&cluster, "unsigned_beside_signed", 1);
    outlast_down_after();
    cluster.agents[1].take().unwrap().kill().unwrap();
    cluster.start_agent(1).unwrap();
    eventually(SOON, "the agent's restart to be noticed", || {
        cluster.events_of("agent_restarted").unwrap().len() == 1
    });
    let manager = cluster.manager.as_ref().unwrap().log();
    assert!(manager.contains("unsigned heartbeats count"), "{manager}");
    assert!(
        manager.contains("heartbeats of these workers are unsigned: worker2"),
        "{manager}"
    );

    change_authentication(&cluster, "permissive", "enforce");
    outlast_down_after();
    let status = cluster.status().unwrap();
    assert_eq!(refused(&status, "unsigned"), 0, "{status:#}");
    stranger.send(&goodbye).unwrap();
    stranger.send(&goodbye).unwrap();
    wait_for_refusals(&cluster, "unsigned", 2);
    let status = cluster.status().unwrap();
    assert_eq!(refused(&status, "unsigned"), 2, "{status:#}");
    assert_eq!(status["heartbeats"]["authentication"], "enforce");
    for worker in 0..2 {
        let backend = &status["services"][0]["backends"][worker];
        assert_eq!(backend["state"], "up");
        assert!(backend["age_ms"].as_u64() < Some(1_000), "{backend:#}");
    }
    for alarm in ["worker_down", "worker_leaving"] {
        assert!(cluster.events_of(alarm).unwrap().is_empty());
    }
}

/// Changes `heartbeats.authentication` while the manager runs.
fn change_authentication(cluster: &Cluster, from: &str, to: &str) {
    let file = cluster.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    let setting = |mode| format!("authentication = {mode:?}");
    assert!(text.contains(&setting(from)), "{text}");
    fs::write(&file, text.replace(&setting(from), &setting(to))).unwrap();
    let said = output(&mut cluster.memlb("reload")).unwrap();
    assert!(said.contains("heartbeats.authentication"), "{said}");
}
