//! Two managers with a real keepalived: what clients notice when machines hand over, die and return.
//!
//! Each test has one system for a sequence of events. Connections of all kinds live through all of them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    client,
    command::output,
    namespace::{Namespace, unique_prefix},
    pair::{
        Idle, Pair, PairOptions, SERVICE_ADDRESS, StreamCounts, Streams, Turnover, TurnoverReport,
        WEB_PORT,
    },
    root_test,
    topology::sister,
};

const SOON: Duration = Duration::from_secs(10);
const IDLE: usize = 2000;
const STREAMS: StreamCounts = StreamCounts {
    downloads: 50,
    uploads: 10,
    dialogues: 5,
};
/// Connections a second, each of which lives for three seconds.
const BUSY: u32 = 1000;
const CALM: u32 = 100;
const HANDOVERS: usize = 20;

/// What is allowed, and what a machine that does other work at the same time adds.
const TAKE_OVER: Duration = Duration::from_millis(500);
const GAP: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(2);
const ROOM: Duration = Duration::from_millis(400);

#[root_test]
fn connections_continue_on_the_other_machine() {
    let mut scene = Scene::start("tc", IDLE, STREAMS);
    scene.hands_over(HANDOVERS);
    scene.finishes();
    scene.outlives_a_machine(BUSY);
    scene.takes_it_back();
}

#[root_test]
fn connections_continue_on_the_other_machine_with_xdp() {
    const FEW: StreamCounts = StreamCounts {
        downloads: 10,
        uploads: 5,
        dialogues: 2,
    };
    let mut scene = Scene::start("xdp", 200, FEW);
    scene.hands_over(2);
    scene.finishes();
    scene.outlives_a_machine(CALM);
    scene.takes_it_back();
}

/// A pair, and connections that live as long as it does.
struct Scene {
    // In the order in which they end.
    streams: Option<Streams>,
    idle: Idle,
    pair: Pair,
}

impl Scene {
    fn start(attach: &str, idle: usize, streams: StreamCounts) -> Self {
        let pair = Pair::start(&PairOptions {
            attach: attach.into(),
            ipv6: true,
            peers: true,
            ..PairOptions::default()
        })
        .unwrap();
        pair.wait_until_active(0, SOON).unwrap();
        pair.wait_until_complete(SOON).unwrap();
        let client = &pair.network.client;
        Self {
            idle: Idle::open(client, idle).unwrap(),
            streams: Some(Streams::start(client, streams).unwrap()),
            pair,
        }
    }

    fn active(&self) -> usize {
        self.pair.wait_for_active(SOON).unwrap()
    }

    fn waiting(&self) -> usize {
        1 - self.active()
    }

    /// Lets clients connect while `work` is done. Every one of them must be served.
    fn serves_during(&mut self, per_second: u32, work: impl FnOnce(&mut Self)) -> TurnoverReport {
        let turnover = Turnover::start(&self.pair.network.client, per_second).unwrap();
        thread::sleep(Duration::from_millis(500));
        work(self);
        thread::sleep(Duration::from_millis(500));
        let report = turnover.finish().unwrap();
        report.expect_no_failure();
        self.keeps_idle_connections();
        report
    }

    fn keeps_idle_connections(&mut self) {
        let count = self.idle.count();
        assert_eq!(self.idle.check(), 0, "of {count} idle connections");
    }

    fn hands_over_once(&mut self) {
        let from = self.active();
        output(&mut self.pair.managers[from].memlb("handover")).unwrap();
        self.pair.wait_until_active(1 - from, SOON).unwrap();
        output(self.pair.managers[from].memlb("handover").arg("--undo")).unwrap();
        self.pair.wait_until_complete(SOON).unwrap();
    }

    fn serves_ipv6(&self) {
        let server = SocketAddr::new(sister(SERVICE_ADDRESS).into(), WEB_PORT);
        let response = client::get(&self.pair.network.client, server, "/", SOON);
        assert!(response.unwrap().first_line().starts_with("Worker"));
    }

    fn hands_over(&mut self, times: usize) {
        let report = self.serves_during(CALM, |scene| {
            for _ in 0..times {
                scene.hands_over_once();
                scene.serves_ipv6();
            }
        });
        let gap = report.longest_gap();
        println!("{times} hand-overs: longest gap {gap:?}");
        assert!(gap <= GAP + ROOM, "{gap:?}");
    }

    fn peer_figure(&self, index: usize, name: &str) -> u64 {
        let figure = self.pair.managers[index].peer(name).unwrap();
        figure
            .as_u64()
            .unwrap_or_else(|| panic!("{name} is {figure}"))
    }

    fn finishes(&mut self) {
        let report = self.streams.take().unwrap().finish().unwrap();
        println!("{report:?}");
        report.expect_no_failure();
        let pause = report.longest_pause;
        assert!(pause <= PAUSE, "a stream stood still for {pause:?}");
        self.keeps_idle_connections();
    }

    fn outlives_a_machine(&mut self, per_second: u32) {
        let active = self.active();
        let turnover = Turnover::start(&self.pair.network.client, per_second).unwrap();
        thread::sleep(Duration::from_secs(4));
        let lag = Duration::from_micros(self.peer_figure(active, "lag_p99_us"));
        let begun = Instant::now();
        self.pair.network.cut_off(active).unwrap();
        let died = Instant::now();
        thread::sleep(Duration::from_secs(4));
        let report = turnover.finish().unwrap();

        let first = report.first_answer_after(died).unwrap();
        assert!(first <= TAKE_OVER + ROOM, "first answer after {first:?}");
        let lost = report.ages_of_lost(begun);
        let old = Duration::from_secs(1);
        let lost_old = lost.iter().filter(|age| **age >= old).count();
        let all_old = report
            .open_at(begun)
            .filter(|it| it.age_at(begun) >= old)
            .count();
        let lost_idle = self.idle.check();
        println!(
            "first answer after {first:?}; lost {} of {} open, {lost_old} of {all_old} older than a second, \
             {lost_idle} idle ones; oldest {:?}, lag p99 {lag:?}",
            lost.len(),
            report.open_at(begun).count(),
            lost.last()
        );
        assert!(all_old > 0);
        assert!(lost_old * 1000 <= all_old, "{lost_old} of {all_old}");
        assert_eq!(lost_idle, 0, "idle connections");
        let oldest = lost.last().copied().unwrap_or_default();
        assert!(
            oldest <= lag + ROOM,
            "the lag was {lag:?}, and one {oldest:?} old was lost"
        );
    }

    fn takes_it_back(&mut self) {
        let dead = self.waiting();
        self.serves_during(CALM, |scene| {
            scene.pair.network.managers[dead].reconnect().unwrap();
            scene.pair.wait_until_complete(SOON).unwrap();
            // It does not take the addresses back by itself.
            scene.pair.wait_until_active(1 - dead, SOON).unwrap();
        });
        self.serves_during(CALM, Self::hands_over_once);
        assert_eq!(self.active(), dead);
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ha")
}

/// A folder for files that keepalived's user may read.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[root_test]
fn keepalived_finds_nothing_wrong_with_the_example() {
    let machine = Namespace::create(unique_prefix() + "keepalived").unwrap();
    let cable = [
        "link", "add", "eth1", "type", "veth", "peer", "name", "eth2",
    ];
    output(machine.ip().args(cable)).unwrap();
    let folder = folder();
    for (name, mode) in [
        ("keepalived.conf", 0o644),
        ("memlb-pair.conf", 0o644),
        ("memlb-notify", 0o755),
    ] {
        let text = fs::read_to_string(scripts().join(name)).unwrap();
        let here = folder.path().display().to_string();
        let file = folder.path().join(name);
        fs::write(&file, text.replace("/etc/keepalived", &here)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut keepalived = machine.command("keepalived");
    keepalived.args(["--config-test", "--use-file"]);
    let tested = keepalived
        .arg(folder.path().join("keepalived.conf"))
        .output()
        .unwrap();
    // Its exit status says nothing: 2.2.7 ends itself by a signal.
    let said = [tested.stdout, tested.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn changes_of_the_role_are_logged() {
    let folder = folder();
    let logger = folder.path().join("logger");
    fs::write(&logger, "#!/bin/sh\necho \"$@\"\n").unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let said = |arguments: &[&str]| {
        let mut script = Command::new("sh");
        script.arg(scripts().join("memlb-notify")).args(arguments);
        output(script.env("PATH", &path))
    };
    let active = said(&["INSTANCE", "memlb", "MASTER", "150"]).unwrap();
    assert!(active.contains("--priority daemon.warning"), "{active}");
    assert!(
        active.contains("memlb: this manager is active now"),
        "{active}"
    );
    let fault = said(&["INSTANCE", "memlb", "FAULT", "100"]).unwrap();
    assert!(
        fault.contains("daemon.err") && fault.contains("(priority 100)"),
        "{fault}"
    );
    said(&["INSTANCE"]).unwrap_err();
}
