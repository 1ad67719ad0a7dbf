//! A pair under load, and faults of whole machines.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    client,
    command::output,
    pair::{
        Idle, Manager, Pair, PairOptions, SERVICE_ADDRESS, StreamCounts, Streams, Turnover,
        TurnoverReport, WEB_PORT,
    },
    topology::ipv6_counterpart,
};

pub const SOON: Duration = Duration::from_secs(10);
/// Connections a second, each of which lives for three seconds.
pub const BUSY: u32 = 1000;
pub const CALM: u32 = 100;

/// What is allowed, and what a machine that does other work at the same time adds.
pub const TAKE_OVER: Duration = Duration::from_millis(500);
const GAP: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(2);
pub const ROOM: Duration = Duration::from_millis(400);

/// What happens to the pair, and its name.
pub type Event = (&'static str, fn(&mut Testbed));

/// A pair, and connections that live as long as it does.
pub struct Testbed {
    // In the order in which they end.
    pub streams: Option<Streams>,
    pub idle: Idle,
    pub pair: Pair,
}

impl Testbed {
    pub fn start(attach: &str, idle: usize, streams: StreamCounts) -> Self {
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

    pub fn active(&self) -> usize {
        self.pair.wait_for_active(SOON).unwrap()
    }

    pub fn waiting(&self) -> usize {
        1 - self.active()
    }

    pub fn manager(&mut self, index: usize) -> &mut Manager {
        &mut self.pair.managers[index]
    }

    /// Lets clients connect while `events` happen one after the other. Every one of them must be served, and the idle
    /// connections must go on after each event. Returns the report of each event.
    pub fn serves_during(&mut self, per_second: u32, events: &[Event]) -> Vec<TurnoverReport> {
        let turnover = Turnover::start(&self.pair.network.client, per_second).unwrap();
        thread::sleep(Duration::from_millis(500));
        let mut ends = vec![Instant::now()];
        for (_, happens) in events {
            happens(self);
            self.keeps_idle_connections();
            ends.push(Instant::now());
        }
        thread::sleep(Duration::from_millis(500));
        let report = turnover.finish().unwrap();
        let mut parts = Vec::new();
        for (event, (name, _)) in events.iter().enumerate() {
            let (from, until) = (ends[event], ends[event + 1]);
            let part = report.between(from, until);
            println!(
                "{name}, {:.1?}: {} of {} connections lost, longest gap {:?}",
                until - from,
                part.failures().len(),
                part.0.len(),
                part.longest_gap()
            );
            parts.push(part);
        }
        report.assert_no_failure();
        parts
    }

    /// Waits until either machine may take over: it knows all connections, and has heard its workers.
    pub fn is_ready(&self) {
        self.pair.wait_until_complete(SOON).unwrap();
        for manager in &self.pair.managers {
            manager.wait_until_workers_are_up(SOON).unwrap();
        }
    }

    pub fn keeps_idle_connections(&mut self) {
        let count = self.idle.count();
        assert_eq!(self.idle.check(), 0, "of {count} idle connections");
    }

    pub fn hands_over_once(&mut self) {
        let from = self.active();
        output(&mut self.pair.managers[from].memlb("handover")).unwrap();
        self.pair.wait_until_active(1 - from, SOON).unwrap();
        output(self.pair.managers[from].memlb("handover").arg("--undo")).unwrap();
        self.pair.wait_until_complete(SOON).unwrap();
    }

    fn serves_ipv6(&self) {
        let server = SocketAddr::new(ipv6_counterpart(SERVICE_ADDRESS).into(), WEB_PORT);
        let response = client::get(&self.pair.network.client, server, "/", SOON);
        assert!(response.unwrap().first_line().starts_with("Worker"));
    }

    pub fn hands_over(&mut self, times: u32) {
        let turnover = Turnover::start(&self.pair.network.client, CALM).unwrap();
        for _ in 0..times {
            self.hands_over_once();
            self.serves_ipv6();
        }
        let report = turnover.finish().unwrap();
        let (lost, total, gap) = (
            report.failures().len(),
            report.0.len(),
            report.longest_gap(),
        );
        println!("{times} hand-overs: {lost} of {total} connections lost, longest gap {gap:?}");
        report.assert_no_failure();
        self.keeps_idle_connections();
        assert!(gap <= GAP + ROOM, "{gap:?}");
    }

    pub fn peer_figure(&self, index: usize, name: &str) -> u64 {
        let figure = self.pair.managers[index].peer(name).unwrap();
        figure
            .as_u64()
            .unwrap_or_else(|| panic!("{name} is {figure}"))
    }

    pub fn finishes(&mut self) {
        let report = self.streams.take().unwrap().finish().unwrap();
        println!("{report:?}");
        report.assert_no_failure();
        let pause = report.longest_pause;
        assert!(pause <= PAUSE, "a stream stood still for {pause:?}");
        self.keeps_idle_connections();
    }

    pub fn survives_the_failure_of_a_machine(&mut self, per_second: u32) {
        let active = self.active();
        let turnover = Turnover::start(&self.pair.network.client, per_second).unwrap();
        thread::sleep(Duration::from_secs(4));
        let lag = Duration::from_micros(self.peer_figure(active, "lag_p99_us"));
        let begun = Instant::now();
        self.pair.network.disconnect(active).unwrap();
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

    pub fn takes_it_back(&mut self) {
        let dead = self.waiting();
        self.serves_during(
            CALM,
            &[
                ("the dead one returns", Self::failed_machine_returns),
                ("it is handed back", Self::hands_over_once),
            ],
        );
        assert_eq!(self.active(), dead);
    }

    fn failed_machine_returns(&mut self) {
        let dead = self.waiting();
        self.pair.network.managers[dead].reconnect().unwrap();
        self.is_ready();
        // It does not take the addresses back by itself.
        self.pair.wait_until_active(1 - dead, SOON).unwrap();
    }
}
