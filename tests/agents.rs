//! Agents: failure reports, clock jumps, unreachable managers, privileges.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use memlb::{
    heartbeat::{Authentication, Authenticator},
    keys,
};
use memlb_tests::{Cluster, Nginx, Process, eventually, root_test};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// What the issue allows between knowing and acting; the machine's own delays come on top.
const AT_ONCE: Duration = Duration::from_millis(50);

/// A busy machine may be late now and then, but not every time.
const TRIES: u32 = 3;

fn without_agents() -> Cluster {
    Cluster::with(|it| it.agents = false)
}

fn start(cluster: &Cluster, name: &str, command: &mut Command) -> Process {
    let log = cluster.paths.directory.join(name).with_extension("log");
    Process::start(name, command, &log).unwrap()
}

/// When the `count`th event of that kind happened, by the manager's wall clock.
fn time_of(cluster: &Cluster, kind: &str, count: u32) -> SystemTime {
    let events = cluster.wait_for_events(kind, count as usize).unwrap();
    let time = events[count as usize - 1]["time"].as_str().unwrap();
    humantime::parse_rfc3339(time).unwrap()
}

/// When a line with `text` was logged last.
fn logged(process: &Process, text: &str) -> SystemTime {
    let log = process.log();
    let line = log.lines().rfind(|line| line.contains(text)).unwrap();
    humantime::parse_rfc3339(line.split_whitespace().next().unwrap()).unwrap()
}

#[root_test]
fn report_a_failed_and_a_recovered_service_at_once() {
    for (check, further) in [
        ("http://127.0.0.1:8081/", &["--expect-status", "200"][..]),
        ("tcp://127.0.0.1:8081", &[]),
    ] {
        let mut cluster = without_agents();
        cluster.start_agent(1).unwrap();
        let mut command = cluster.agent_command(0, cluster.heartbeat_address());
        // So seldom that only what is said at once comes in time.
        command.args([
            "--interval",
            "1s",
            "--check",
            check,
            "--check-interval",
            "50ms",
        ]);
        command.args(further);
        // The manager's down_after of 1.5 s would call this too slow.
        let agent = start(&cluster, "checking", &mut command);
        cluster.wait_for_page("Worker1", SOON).unwrap();

        let mut delays = Vec::new();
        for count in 1..=TRIES {
            cluster.servers[0].process.kill().unwrap();
            let acted = time_of(&cluster, "worker_unhealthy", count);
            let known = logged(&agent, "the service does not answer");
            delays.push(acted.duration_since(known).unwrap_or_default());
            cluster.wait_for_page("Worker2", SOON).unwrap();

            let directory = cluster.paths.directory.join("worker1");
            cluster.servers[0] =
                Nginx::start(&cluster.topology.workers[0], 8081, "Worker1", &directory).unwrap();
            cluster.wait_for_state("worker1", "up", SOON).unwrap();
        }
        println!("{check}: {delays:?}");
        assert!(
            delays.iter().min().is_some_and(|best| *best <= AT_ONCE),
            "{delays:?}"
        );
        // Its machine was there all the time.
        assert!(cluster.events_of("worker_down").unwrap().is_empty());
    }
}

#[root_test]
fn report_shutdown_at_once() {
    for authentication in [None, Some("enforce")] {
        let mut cluster = Cluster::with(|it| it.authentication = authentication);
        cluster.wait_for_page("Worker1", SOON).unwrap();
        let mut delays = Vec::new();
        for count in 1..=TRIES {
            let signal = if count % 2 == 0 {
                Signal::SIGINT
            } else {
                Signal::SIGTERM
            };
            let asked = SystemTime::now();
            let mut agent = cluster.agents[0].take().unwrap();
            agent.signal(signal).unwrap();
            let acted = time_of(&cluster, "worker_leaving", count);
            delays.push(acted.duration_since(asked).unwrap_or_default());
            assert!(agent.wait(SOON).unwrap().success());
            cluster.wait_for_page("Worker2", SOON).unwrap();
            cluster.start_agent(0).unwrap();
            cluster.wait_for_state("worker1", "up", SOON).unwrap();
        }
        println!("{authentication:?}: {delays:?}");
        assert!(
            delays.iter().min().is_some_and(|best| *best <= AT_ONCE),
            "{delays:?}"
        );
    }
}

#[root_test]
fn report_a_service_that_never_answered_as_failed() {
    let cluster = without_agents();
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    command.args([
        "--check",
        "http://127.0.0.1:8081/nothing-here",
        "--expect-status",
        "200",
    ]);
    let mut agent = start(&cluster, "checking", &mut command);
    cluster
        .wait_for_state("worker1", "unhealthy", SOON)
        .unwrap();
    assert!(cluster.events_of("worker_up").unwrap().is_empty());
    assert!(
        agent.log().contains("status 404, not 200"),
        "{}",
        agent.log()
    );
    assert!(agent.terminate(SOON).unwrap().success());
}

#[root_test]
fn run_without_privileges_and_default_to_the_host_name() {
    let cluster = without_agents();
    // Where anybody may run it.
    let binary = cluster.paths.directory.join("memlb");
    fs::copy(&cluster.binary, &binary).unwrap();
    let script = format!(
        "hostname worker1 && exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
         --inh-caps=-all --bounding-set=-all {} agent --manager {} --memory-file {}",
        binary.display(),
        cluster.heartbeat_address(),
        cluster.memory[0].path().display(),
    );
    let mut command = cluster.topology.workers[0].command("unshare");
    command.args(["--uts", "sh", "-c", &script]);
    let mut agent = start(&cluster, "unknown", &mut command);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    assert!(agent.terminate(SOON).unwrap().success());
    cluster.wait_for_state("worker1", "leaving", SOON).unwrap();
}

#[root_test]
fn an_unreachable_manager_delays_no_other() {
    let mut cluster = without_agents();
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    for unreachable in [
        "no-such-manager.invalid",
        "192.168.56.250",
        "192.168.56.103:9",
        "203.0.113.1",
    ] {
        command.args(["--manager", unreachable]);
    }
    let agent = start(&cluster, "patient", &mut command);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    let accepted = |status: &Value| status["heartbeats"]["accepted"].as_u64().unwrap();
    let before = accepted(&cluster.status().unwrap());
    let begun = Instant::now();
    eventually(SOON, "two seconds", || {
        begun.elapsed() > Duration::from_secs(2)
    });
    let heard = accepted(&cluster.status().unwrap()) - before;
    assert!((15..=25).contains(&heard), "{heard} heartbeats in 2 s");
    eventually(SOON, "the unknown name to be told", || {
        agent
            .log()
            .contains("no-such-manager.invalid:9999 cannot be resolved, trying again")
    });

    // The only real one goes, too, and comes back.
    cluster.kill_manager().unwrap();
    let begun = Instant::now();
    eventually(SOON, "a while", || begun.elapsed() > Duration::from_secs(2));
    cluster.start_manager().unwrap();
    let took = cluster.wait_for_state("worker1", "up", SOON).unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let told = agent.log().matches("cannot be sent").count();
    assert!(told <= 4, "said {told} times:\n{}", agent.log());
}

#[root_test]
fn a_clock_jump_marks_no_worker_as_down() {
    let cluster = Cluster::with(|it| {
        it.agents = false;
        it.authentication = Some("enforce");
    });
    let clock = cluster.paths.directory.join("clock");
    let set = |hours: i64| {
        // Replaced as a whole: the agent reads it at every look at the clock.
        let next = clock.with_extension("next");
        fs::write(&next, format!("{hours:+}h\n")).unwrap();
        fs::rename(&next, &clock).unwrap();
    };
    set(0);
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1");
    command.env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_NO_CACHE", "1");
    // The monotonic clock cannot be set.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let agent = start(&cluster, "jumping", &mut command);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let accepted = || cluster.status().unwrap()["heartbeats"]["accepted"].as_u64();
    for hours in [1, 0, -1, 0] {
        let before = accepted().unwrap();
        set(hours);
        eventually(SOON, "the agent to see its clock jump", || {
            let seconds = |time: SystemTime| {
                let since = time.duration_since(SystemTime::UNIX_EPOCH);
                since.unwrap().as_secs().cast_signed()
            };
            let ahead = seconds(logged(&agent, "sent ")) - seconds(SystemTime::now());
            (ahead - hours * 3_600).abs() < 60
        });
        // More of them than come within down_after.
        cluster.assert_status(SOON, "heartbeats to be accepted", |status| {
            status["heartbeats"]["accepted"].as_u64() > Some(before + 20)
        });
        assert_eq!(cluster.backend("worker1").unwrap()["state"], "up");
        assert_eq!(cluster.page().unwrap(), "Worker1");
    }
    assert!(cluster.events_of("worker_down").unwrap().is_empty());
    cluster.require_events("worker_up", 1).unwrap();
    let refused = cluster.status().unwrap()["heartbeats"]["refused"].clone();
    assert_eq!(refused, serde_json::json!({ "not_fresh": 1 }));
}

#[root_test]
fn each_manager_has_its_own_nonce() {
    let cluster = Cluster::with(|it| {
        it.agents = false;
        it.authentication = Some("enforce");
    });
    // The second manager is an authenticator with nothing behind it, where the client is.
    let socket = cluster
        .topology
        .client
        .enter(|| UdpSocket::bind("0.0.0.0:9999"))
        .unwrap()
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let keys = keys::read_keys(cluster.key_file(0).unwrap().parent().unwrap()).unwrap();
    let (stop, accepted, refused) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicU32::new(0)),
    );
    let standby = {
        let (stop, accepted, refused) = (stop.clone(), accepted.clone(), refused.clone());
        thread::spawn(move || {
            let now = Instant::now();
            let mut authenticator =
                Authenticator::new(Authentication::Enforce, false, keys, now).unwrap();
            let mut buffer = [0; 1200];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let now = Instant::now();
                let (count, answer) = match authenticator.verify(&buffer[..length], from, now) {
                    Ok(verified) => (
                        &accepted,
                        authenticator.record_accepted(&verified, from, now),
                    ),
                    Err(no) => (&refused, no.reply),
                };
                count.fetch_add(1, Ordering::Relaxed);
                answer.map(|answer| socket.send_to(&answer, from).unwrap());
            }
        })
    };
    let second = SocketAddr::new(
        cluster.topology.client.addresses().next().unwrap().into(),
        9999,
    );
    let mut command = cluster.agent_command(0, cluster.heartbeat_address());
    command.args(["--manager", &second.to_string()]);
    let agent = start(&cluster, "two managers", &mut command);
    cluster.wait_for_state("worker1", "up", SOON).unwrap();
    eventually(SOON, "the standby to hear it", || {
        accepted.load(Ordering::Relaxed) >= 20
    });
    stop.store(true, Ordering::Relaxed);
    standby.join().unwrap();
    // Each challenged it once, and no answer of the one confused the other.
    assert_eq!(refused.load(Ordering::Relaxed), 1);
    assert_eq!(
        cluster.status().unwrap()["heartbeats"]["refused"]["not_fresh"],
        1
    );
    assert!(
        !agent.log().contains("does not acknowledge"),
        "{}",
        agent.log()
    );
}
