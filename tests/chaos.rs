//! Everything at once: workers die, links are cut, heartbeats stop, the manager is killed, reloaded and
//! told to drain, all by a seed, while clients ask without pause and check what they get.
//!
//! `MEMLB_CHAOS_SECONDS` (60) says how long, `MEMLB_CHAOS_SEED` (1) which history, `MEMLB_KILLS` (10)
//! how often the manager is killed where that is all that happens.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    env, fs, thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    Cluster, ClusterOptions, Connection, Nginx, Probe, Process, Report,
    cluster::{worker_name, worker_port},
    probe::Ask,
    require_root,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);
const WORKERS: usize = 3;

/// `down_after` by default, and what a busy machine may be late.
const DETECTION: Duration = Duration::from_millis(1500 + 400);

/// How long a manager waits at least for a worker that was late when the one before it was killed.
const HEARD_AGAIN: Duration = Duration::from_millis(300);

/// What a request may have been under way before the fault that ended it.
const UNDER_WAY: Duration = Duration::from_millis(500);

#[test]
fn only_a_workers_own_death_is_felt_and_only_until_it_is_noticed() {
    if !require_root() {
        return;
    }
    let (seconds, seed) = (
        number("MEMLB_CHAOS_SECONDS", 60),
        number("MEMLB_CHAOS_SEED", 1),
    );
    let mut chaos = Chaos::start(seed);
    let client = &chaos.cluster.topology.client;
    let every = Duration::from_millis(10);
    let probe = Probe::start(client, chaos.cluster.service(), every, SOON).unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        chaos.happen();
        let pause = chaos.random.below(900) + 100;
        thread::sleep(Duration::from_millis(pause));
    }
    chaos.heal_all();
    for index in 0..WORKERS {
        let name = worker_name(index);
        chaos.cluster.wait_for_state(&name, "up", SOON).unwrap();
    }
    let report = probe.stop().unwrap();
    let unexplained = chaos.judge(&report);
    println!("seed {seed}, {seconds} s: {}", chaos.account(&report));
    if env::var_os("MEMLB_CHAOS_STORY").is_some() {
        chaos.tell_failures(&report);
        println!("{}", chaos.story());
    }
    assert!(
        unexplained.is_empty(),
        "seed {seed}: {} unexplained, the first: {:?}\n{}",
        unexplained.len(),
        unexplained[0],
        chaos.story()
    );
    let expected = |ask: &Ask| {
        ask.page()
            .is_none_or(|page| page == "Manager" || page.starts_with("Worker"))
    };
    assert!(report.asks.iter().all(expected));
    assert!(report.asks.len() as u64 > seconds * 20, "too few to tell");
}

#[test]
fn kills_at_any_instant_are_not_felt() {
    if !require_root() {
        return;
    }
    let (kills, seed) = (number("MEMLB_KILLS", 10), number("MEMLB_CHAOS_SEED", 1));
    let mut random = Random(seed);
    let mut cluster = Cluster::start(&ClusterOptions::default()).unwrap();
    cluster.wait_for_page("Worker1", SOON).unwrap();
    let client = &cluster.topology.client;
    let mut kept = Connection::open(client, cluster.service(), SOON).unwrap();
    let every = Duration::from_millis(5);
    let probe = Probe::start(client, cluster.service(), every, SOON).unwrap();
    cluster.kill_manager().unwrap();
    for _ in 0..kills {
        let mut command = cluster.manager_command();
        let log = cluster.place.directory.join("manager.log");
        let mut manager = Process::start("memlb manager", &mut command, &log).unwrap();
        // From before its first instruction until well after it is ready.
        thread::sleep(Duration::from_millis(random.below(400)));
        manager.kill().unwrap();
        assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
    }
    cluster.start_manager().unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    let report = probe.stop().unwrap();
    println!(
        "{kills} kills, {} requests, longest outage {:?}",
        report.asks.len(),
        report.longest_outage()
    );
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(report.runs().len(), 1, "{:?}", report.runs());
    assert_eq!(kept.get("/").unwrap().first_line(), "Worker1");
}

/// What is wrong with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ailment {
    /// Server and agent are killed.
    Dead,
    /// Its cable is out.
    Cut,
    /// Its agent says nothing; its server is fine.
    Mute,
}

/// A time in which requests may fail, and why.
#[derive(Debug)]
struct Excuse {
    from: Instant,
    until: Instant,
    why: String,
}

struct Chaos {
    cluster: Cluster,
    random: Random,
    ailing: [Option<Ailment>; WORKERS],
    excuses: Vec<Excuse>,
    happened: BTreeMap<&'static str, u64>,
    story: Vec<String>,
    started: Instant,
    configuration: String,
}

impl Chaos {
    fn start(seed: u64) -> Self {
        let cluster = Cluster::start(&ClusterOptions {
            available_kb: vec![450 * 1024, 400 * 1024, 350 * 1024],
            ..ClusterOptions::default()
        })
        .unwrap();
        let file = cluster.place.directory.join("memlb.toml");
        Self {
            configuration: fs::read_to_string(file).unwrap(),
            cluster,
            random: Random(seed),
            ailing: [None; WORKERS],
            excuses: Vec::new(),
            happened: BTreeMap::new(),
            story: Vec::new(),
            started: Instant::now(),
        }
    }

    /// One thing happens.
    fn happen(&mut self) {
        let index = usize::try_from(self.random.below(WORKERS as u64)).unwrap();
        match self.random.below(10) {
            0..5 => match self.ailing[index] {
                Some(_) => self.heal(index),
                None => self.ail(index),
            },
            5 | 6 => self.kill_manager(),
            7 => self.reload(),
            8 => self.order(index, "drain"),
            _ => self.order(index, "undrain"),
        }
    }

    fn ail(&mut self, index: usize) {
        let ailment = [Ailment::Dead, Ailment::Cut, Ailment::Mute]
            [usize::try_from(self.random.below(3)).unwrap()];
        self.tell("ailments", format!("{} is {ailment:?}", worker_name(index)));
        let from = Instant::now();
        match ailment {
            Ailment::Dead => {
                self.cluster.servers[index].process.kill().unwrap();
                self.cluster.kill_agent(index).unwrap();
            }
            Ailment::Cut => self.cluster.topology.workers[index].cut_off().unwrap(),
            Ailment::Mute => self.signal_agent(index, Signal::SIGSTOP),
        }
        self.ailing[index] = Some(ailment);
        self.excuses.push(Excuse {
            from,
            until: from + DETECTION,
            why: format!("{ailment:?}"),
        });
    }

    fn heal(&mut self, index: usize) {
        let Some(ailment) = self.ailing[index].take() else {
            return;
        };
        self.tell(
            "recoveries",
            format!("{} is well again", worker_name(index)),
        );
        match ailment {
            Ailment::Dead => {
                let worker = &self.cluster.topology.workers[index];
                let directory = self.cluster.place.directory.join(worker_name(index));
                let page = format!("Worker{}", index + 1);
                let port = worker_port(index).unwrap();
                self.cluster.servers[index] =
                    Nginx::start(worker, port, &page, &directory).unwrap();
                self.cluster.start_agent(index).unwrap();
            }
            Ailment::Cut => self.cluster.topology.workers[index].reconnect().unwrap(),
            Ailment::Mute => self.signal_agent(index, Signal::SIGCONT),
        }
    }

    fn heal_all(&mut self) {
        for index in 0..WORKERS {
            self.heal(index);
            self.order(index, "undrain");
        }
    }

    fn kill_manager(&mut self) {
        self.tell("manager kills", "the manager is killed".to_owned());
        let killed = Instant::now();
        self.cluster.kill_manager().unwrap();
        thread::sleep(Duration::from_millis(self.random.below(700)));
        self.cluster.start_manager().unwrap();
        // The next manager goes on with what this one has waited for who died shortly before.
        for excuse in &mut self.excuses {
            if excuse.until > killed {
                let left = excuse.until - killed + HEARD_AGAIN;
                excuse.until = Instant::now() + left.min(DETECTION);
            }
        }
    }

    fn reload(&mut self) {
        let policies = [
            "memory",
            "balanced",
            "round_robin",
            "least_connections",
            "source_hash",
        ];
        let policy = policies[usize::try_from(self.random.below(5)).unwrap()];
        self.tell("reloads", format!("reloaded with policy {policy}"));
        let wanted = format!("policy = \"{policy}\"");
        let text = self.configuration.replace("policy = \"memory\"", &wanted);
        fs::write(self.cluster.place.directory.join("memlb.toml"), text).unwrap();
        let reloaded = self.cluster.memlb("reload").output().unwrap();
        assert!(reloaded.status.success(), "{reloaded:?}");
    }

    fn order(&mut self, index: usize, verb: &'static str) {
        let worker = worker_name(index);
        self.tell("orders", format!("{verb} {worker}"));
        let ordered = self.cluster.memlb(verb).arg(worker).output().unwrap();
        assert!(ordered.status.success(), "{ordered:?}");
    }

    fn signal_agent(&mut self, index: usize, signal: Signal) {
        let agent = self.cluster.agents[index].as_mut().unwrap();
        agent.signal(signal).unwrap();
    }

    fn tell(&mut self, kind: &'static str, what: String) {
        *self.happened.entry(kind).or_default() += 1;
        let at = self.started.elapsed().as_secs_f64();
        self.story.push(format!("{at:7.3} {what}"));
    }

    /// Returns the failures that nothing explains.
    fn judge<'a>(&self, report: &'a Report) -> Vec<&'a Ask> {
        let explained = |ask: &Ask| self.excuse(ask).is_some();
        report.failures().filter(|ask| !explained(ask)).collect()
    }

    /// A request is excused that was made while a worker's death was not noticed yet, or was under
    /// way when it began.
    fn excuse(&self, ask: &Ask) -> Option<&Excuse> {
        // The latest is the likeliest.
        let mut excuses = self.excuses.iter().rev();
        excuses.find(|it| ask.asked_at + UNDER_WAY >= it.from && ask.asked_at <= it.until)
    }

    fn account(&self, report: &Report) -> String {
        let mut causes: BTreeMap<String, u64> = BTreeMap::new();
        for ask in report.failures() {
            let why = self.excuse(ask).map_or("unexplained", |it| it.why.as_str());
            let error = ask.answer.as_ref().err().map_or("", String::as_str);
            *causes.entry(format!("{why}: {error}")).or_default() += 1;
        }
        format!(
            "{:?}; {} requests, {} failures {causes:?}, longest outage {:?}",
            self.happened,
            report.asks.len(),
            report.failures().count(),
            report.longest_outage()
        )
    }

    /// Adds to the story when requests failed.
    fn tell_failures(&mut self, report: &Report) {
        for ask in report.failures() {
            let at = (ask.asked_at - self.started).as_secs_f64();
            let took = ask.ended_at - ask.asked_at;
            let line = format!("{at:7.3}   failed after {took:?}: {:?}", ask.answer);
            self.story.push(line);
        }
        self.story.sort();
    }

    fn story(&self) -> String {
        self.story.join("\n")
    }
}

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}
