//! Random faults under load: workers die, links are cut, heartbeats stop or get lost; the manager is killed, reloaded
//! with other policies and workers, and gets orders; its programs are detached and its interface is renamed. A seed
//! determines the sequence. Clients send requests all the time and check the replies.
//!
//! `MEMLB_CHAOS_SECONDS` (60) is the duration, `MEMLB_CHAOS_SEED` (1) selects the sequence, and `MEMLB_KILLS` (10) is
//! the number of kills in the test that only kills the manager.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    env, fs, thread,
    time::{Duration, Instant, SystemTime},
};

use lb_core::ALL_WORKERS;
use memlb_tests::{
    Cluster, ClusterOptions, Connection, LossyLink, Nginx, Probe, Process, Report,
    cluster_options::{worker_name, worker_port},
    observe::bpftool,
    probe::Request,
    random::Random,
    root_test,
    transfer::random_bytes,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);
const WORKERS: usize = 3;

/// `down_after` by default, and what a busy machine may be late.
const DETECTION: Duration = lb_core::DEFAULT_DOWN_AFTER.saturating_add(Duration::from_millis(400));

/// The least time that a manager waits for a worker that was late when the former manager was killed.
const RECOVERY_GRACE: Duration = Duration::from_millis(300);

/// The longest duration of a request before the fault that ends it.
const REQUEST_TIME: Duration = Duration::from_millis(500);

/// The greatest difference between an event's time and the client's observation.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);

/// The longest time until the network reaches a reconnected worker; its packets arrive late meanwhile.
const RECONNECTED: Duration = Duration::from_secs(1);

/// The time in which a manager detects a detached program and attaches it again.
const REATTACHED: Duration = Duration::from_millis(1_000 + 500);

/// The time in which a trial finds that a failing worker serves again: the pause between trials, and what a trial
/// takes that began before.
const RECOVERY: Duration = Duration::from_millis(300 + 1_500);

/// The manager's interface, and its other name.
const INTERFACE: &str = "eth1";
const OTHER_NAME: &str = "lan1";

/// How long the long connection waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The further delay that a busy machine may cause.
const SLACK: Duration = Duration::from_millis(500);

#[root_test]
fn only_a_workers_own_failure_breaks_requests_and_only_until_it_is_detected() {
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
        chaos.maintain_long_connection();
        chaos.act();
        let pause = chaos.random.below(900) + 100;
        thread::sleep(Duration::from_millis(pause));
    }
    chaos.repair_all();
    for index in 0..WORKERS {
        let name = worker_name(index);
        chaos.cluster.wait_for_state(&name, "up", SOON).unwrap();
    }
    let report = probe.stop().unwrap();
    let history = EventHistory::read(&chaos.cluster);
    chaos.tolerate_late_news(&history);
    println!(
        "seed {seed}, {seconds} s: {}",
        chaos.summary(&report, &history)
    );
    let unexplained = chaos.unexplained_failures(&report, &history);
    let unexplained: Vec<_> = unexplained.into_iter().cloned().collect();
    let is_asked = env::var_os("MEMLB_CHAOS_STORY").is_some();
    if is_asked || !unexplained.is_empty() {
        chaos.record_failures(&report, &history);
        println!("{}", chaos.actions());
    }
    assert!(
        unexplained.is_empty(),
        "seed {seed}: {} unexplained, the first: {:?}",
        unexplained.len(),
        unexplained[0]
    );
    let false_alarms = chaos.false_alarms(&history);
    assert!(
        false_alarms.is_empty(),
        "seed {seed}: {false_alarms:?}\n{}",
        chaos.actions()
    );
    let kept_out = chaos.kept_out(&history);
    assert!(
        kept_out.is_empty(),
        "seed {seed}: {kept_out:?}\n{}",
        chaos.actions()
    );
    let page = |request: &Request| {
        request
            .page()
            .is_none_or(|page| page == "Manager" || page.starts_with("Worker"))
    };
    assert!(report.requests.iter().all(page));
    assert!(
        report.requests.len() as u64 > seconds * 20,
        "too few requests"
    );
    let (outage, bound) = (report.longest_outage(), chaos.longest_tolerance() + SLACK);
    assert!(
        outage <= bound,
        "seed {seed}: out for {outage:?}, not {bound:?}\n{}",
        chaos.actions()
    );
    let long_connection = &chaos.long_connection;
    assert!(
        long_connection.broken.is_empty(),
        "seed {seed}: {:?}\n{}",
        long_connection.broken,
        chaos.actions()
    );
    assert!(
        long_connection.uses > seconds / 4 && long_connection.trials > 0,
        "{long_connection:?}"
    );
}

#[root_test]
fn killing_the_manager_breaks_no_request() {
    let (kills, seed) = (number("MEMLB_KILLS", 10), number("MEMLB_CHAOS_SEED", 1));
    let mut random = Random(seed);
    let mut cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    let client = &cluster.topology.client;
    let mut long_connection = Connection::open(client, cluster.service(), SOON).unwrap();
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    cluster.kill_manager().unwrap();
    for _ in 0..kills {
        let mut command = cluster.manager_command();
        let log = cluster.paths.directory.join("manager.log");
        let mut manager = Process::start("memlb manager", &mut command, &log).unwrap();
        // From before its first instruction until well after it is ready.
        thread::sleep(Duration::from_millis(random.below(400)));
        manager.kill().unwrap();
        assert_eq!(long_connection.get("/").unwrap().first_line(), "Worker1");
    }
    cluster.start_manager().unwrap();
    for worker in ["worker1", "worker2"] {
        cluster.wait_for_state(worker, "up", SOON).unwrap();
    }
    let report = probe.stop().unwrap();
    println!(
        "{kills} kills, {} requests, longest outage {:?}",
        report.requests.len(),
        report.longest_outage()
    );
    report.assert_no_failure();
    assert_eq!(report.runs().len(), 1, "{:?}", report.runs());
    assert_eq!(long_connection.get("/").unwrap().first_line(), "Worker1");
}

/// A fault of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Server and agent are killed.
    Dead,
    /// Its link is cut.
    Cut,
    /// Its agent is stopped; its server works.
    Silent,
    /// A program is detached, so that no worker is reached.
    Detached,
}

/// A time in which requests to a worker may fail, and the fault that is the reason.
#[derive(Debug)]
struct Tolerance {
    /// `None`: all workers.
    worker: Option<usize>,
    from: Instant,
    until: Instant,
    fault: Fault,
}

/// A time in which a worker had a state.
#[derive(Debug)]
struct Period {
    worker: usize,
    from: Instant,
    until: Option<Instant>,
}

/// The events of the whole time.
struct EventHistory {
    /// When the selection changed, and to which backend.
    selected: Vec<(Instant, String)>,
    /// When which workers went down.
    down: Vec<(Instant, String)>,
    /// When which workers came up.
    up: Vec<(Instant, String)>,
    /// When which workers were failing: their servers did not serve, whatever their heartbeats said.
    failing: Vec<(Period, String)>,
}

impl EventHistory {
    fn read(cluster: &Cluster) -> Self {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let (mut selected, mut down, mut up) = (Vec::new(), Vec::new(), Vec::new());
        let mut failing = Vec::<(Period, String)>::new();
        for event in cluster.events().unwrap() {
            let time = humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
            let at = now - clock.duration_since(time).unwrap();
            let name = |field: &str| event[field].as_str().unwrap().to_owned();
            let kind = event["event"].as_str().unwrap();
            if ["worker_recovered", "worker_down", "worker_up"].contains(&kind) {
                let open = failing.iter_mut().filter(|it| it.0.until.is_none());
                for (period, _) in open.filter(|it| it.1 == name("worker")) {
                    period.until = Some(at);
                }
            }
            match kind {
                "selection_changed" | "selection_adopted" => selected.push((at, name("to"))),
                "worker_down" => down.push((at, name("worker"))),
                "worker_up" => up.push((at, name("worker"))),
                "worker_failing" => {
                    let period = Period {
                        worker: (0..WORKERS)
                            .find(|it| worker_name(*it) == name("worker"))
                            .unwrap(),
                        from: at,
                        until: None,
                    };
                    failing.push((period, name("worker")));
                }
                _ => {}
            }
        }
        Self {
            selected,
            down,
            up,
            failing,
        }
    }

    fn is_failing(&self, worker: usize, at: Instant) -> bool {
        self.failing.iter().any(|(it, _)| {
            it.worker == worker
                && it.from <= at + CLOCK_TOLERANCE
                && it.until.is_none_or(|until| until + CLOCK_TOLERANCE >= at)
        })
    }

    /// Whether a new connection could go to that worker at about that time.
    fn could_serve(&self, worker: usize, at: Instant) -> bool {
        let name = worker_name(worker);
        let next = self.selected.iter().skip(1).map(|(next, _)| Some(*next));
        let periods = self.selected.iter().zip(next.chain([None]));
        periods
            .filter(|((from, _), until)| {
                *from <= at + CLOCK_TOLERANCE
                    && until.is_none_or(|until| until + CLOCK_TOLERANCE >= at)
            })
            .any(|((_, to), _)| to == ALL_WORKERS || *to == name)
    }
}

/// A connection that must last as long as its worker, whatever happens to the manager.
#[derive(Debug, Default)]
struct LongConnection {
    connection: Option<(Connection, usize)>,
    /// How often it has transferred the whole blob.
    uses: u64,
    /// How often it did so after the manager was killed or reloaded.
    trials: u64,
    broken: Vec<String>,
}

struct Chaos {
    cluster: Cluster,
    random: Random,
    /// Between each agent and the manager.
    links: Vec<LossyLink>,
    active_fault: [Option<Fault>; WORKERS],
    drained: [bool; WORKERS],
    /// Not in the configuration.
    removed: [bool; WORKERS],
    policy: &'static str,
    is_renamed: bool,
    tolerances: Vec<Tolerance>,
    /// When no manager ran.
    absences: Vec<(Instant, Instant)>,
    faults: Vec<(Period, Fault)>,
    /// When each worker had no fault and was not drained.
    serving: Vec<Period>,
    long_connection: LongConnection,
    blob: Vec<u8>,
    counts: BTreeMap<&'static str, u64>,
    actions: Vec<String>,
    started: Instant,
    configuration: String,
}

impl Chaos {
    fn start(seed: u64) -> Self {
        let cluster = Cluster::start(&ClusterOptions {
            available_kb: vec![450 * 1024, 400 * 1024, 350 * 1024],
            agents: false,
            // Otherwise a worker that fails often idles for long after its repair.
            manager_arguments: ["failing_pause", "failing_max_pause"]
                .into_iter()
                .flat_map(|key| ["--set".to_owned(), format!("failover.{key}=300ms")])
                .collect(),
            ..ClusterOptions::default()
        })
        .unwrap();
        let blob = random_bytes(seed, 1 << 20);
        for server in &cluster.servers {
            fs::write(server.root().join("blob"), &blob).unwrap();
        }
        let (workers, manager) = (&cluster.topology.workers, cluster.heartbeat_address());
        let lay = |index: usize| {
            LossyLink::create(&workers[index], manager, seed + index as u64).unwrap()
        };
        let links = (0..WORKERS).map(lay).collect();
        let file = cluster.paths.directory.join("memlb.toml");
        let mut chaos = Self {
            configuration: fs::read_to_string(file).unwrap(),
            cluster,
            random: Random(seed),
            links,
            active_fault: [None; WORKERS],
            drained: [false; WORKERS],
            removed: [false; WORKERS],
            policy: "memory",
            is_renamed: false,
            tolerances: Vec::new(),
            absences: Vec::new(),
            faults: Vec::new(),
            serving: Vec::new(),
            long_connection: LongConnection::default(),
            blob,
            counts: BTreeMap::new(),
            actions: Vec::new(),
            started: Instant::now(),
        };
        for index in 0..WORKERS {
            chaos.start_agent(index);
        }
        for index in 0..WORKERS {
            let name = worker_name(index);
            chaos.cluster.wait_for_state(&name, "up", SOON).unwrap();
        }
        (0..WORKERS).for_each(|index| chaos.serves(index));
        chaos
    }

    fn start_agent(&mut self, index: usize) {
        let name = worker_name(index);
        let mut command = self.cluster.agent_command(index, self.links[index].address);
        let log = self.cluster.paths.directory.join(format!("{name}.log"));
        self.cluster.agents[index] = Some(Process::start(&name, &mut command, &log).unwrap());
    }

    /// Performs one random action.
    fn act(&mut self) {
        let index = usize::try_from(self.random.below(WORKERS as u64)).unwrap();
        match self.random.below(15) {
            0..5 => match self.active_fault[index] {
                Some(_) => self.repair(index),
                None => self.inject_fault(index),
            },
            5 | 6 => self.kill_manager(),
            7 => self.reload(),
            8 => self.run_verb(index, "drain"),
            9 => self.run_verb(index, "undrain"),
            10 | 11 => self.reconfigure(index),
            12 => self.detach(),
            13 => self.rename(),
            _ => self.set_loss(index),
        }
    }

    fn inject_fault(&mut self, index: usize) {
        let fault = [Fault::Dead, Fault::Cut, Fault::Silent]
            [usize::try_from(self.random.below(3)).unwrap()];
        self.record("faults", format!("{} is {fault:?}", worker_name(index)));
        let from = Instant::now();
        match fault {
            Fault::Dead => {
                self.cluster.servers[index].process.kill().unwrap();
                self.cluster.kill_agent(index).unwrap();
            }
            Fault::Cut => self.cluster.topology.workers[index].disconnect().unwrap(),
            _ => self.signal_agent(index, Signal::SIGSTOP),
        }
        self.active_fault[index] = Some(fault);
        let period = Period {
            worker: index,
            from,
            until: None,
        };
        self.faults.push((period, fault));
        self.ends_serving(index, from);
        if self
            .long_connection
            .connection
            .as_ref()
            .is_some_and(|it| it.1 == index)
        {
            self.long_connection.connection = None;
        }
        // A worker that is drained or still down has no new connections that could fail.
        if self.is_considered_up(index) {
            self.tolerate(index, from, from + DETECTION);
        }
    }

    fn is_considered_up(&self, index: usize) -> bool {
        let backend = self.cluster.backend(&worker_name(index));
        !self.removed[index] && backend.unwrap()["state"] == "up"
    }

    /// Tolerates failures of a worker that cannot answer. A worker whose agent is silent still answers.
    fn tolerate(&mut self, index: usize, from: Instant, until: Instant) {
        if let Some(fault @ (Fault::Dead | Fault::Cut)) = self.active_fault[index] {
            self.tolerances.push(Tolerance {
                worker: Some(index),
                from,
                until,
                fault,
            });
        }
    }

    /// Tolerates failures of a worker that died again before the manager received its first heartbeats.
    fn tolerate_late_news(&mut self, history: &EventHistory) {
        for (at, name) in &history.up {
            let active_fault = self.faults.iter().find(|(period, _)| {
                worker_name(period.worker) == *name
                    && period.from <= *at
                    && *at <= period.from + RECONNECTED
                    && period.until.is_none_or(|until| *at <= until)
            });
            if let Some((period, fault @ (Fault::Dead | Fault::Cut))) = active_fault {
                let noticed = *at + DETECTION;
                self.tolerances.push(Tolerance {
                    worker: Some(period.worker),
                    from: *at,
                    until: period.until.map_or(noticed, |until| until.min(noticed)),
                    fault: *fault,
                });
            }
        }
    }

    fn serves(&mut self, index: usize) {
        let open = self
            .serving
            .iter()
            .any(|it| it.worker == index && it.until.is_none());
        let is_well = self.active_fault[index].is_none() && !self.drained[index];
        if is_well && !self.removed[index] && !open {
            self.serving.push(Period {
                worker: index,
                from: Instant::now(),
                until: None,
            });
        }
    }

    fn ends_serving(&mut self, index: usize, at: Instant) {
        let mut serving = self.serving.iter_mut();
        if let Some(period) = serving.find(|it| it.worker == index && it.until.is_none()) {
            period.until = Some(at);
        }
    }

    fn repair(&mut self, index: usize) {
        let Some(fault) = self.active_fault[index].take() else {
            return;
        };
        self.record("recoveries", format!("{} is repaired", worker_name(index)));
        match fault {
            Fault::Dead => {
                let worker = &self.cluster.topology.workers[index];
                let directory = self.cluster.paths.directory.join(worker_name(index));
                let page = format!("Worker{}", index + 1);
                let port = worker_port(index).unwrap();
                self.cluster.servers[index] =
                    Nginx::start(worker, port, &page, &directory).unwrap();
                self.start_agent(index);
            }
            Fault::Cut => self.cluster.topology.workers[index].reconnect().unwrap(),
            _ => self.signal_agent(index, Signal::SIGCONT),
        }
        let now = Instant::now();
        let (period, _) = self
            .faults
            .iter_mut()
            .rfind(|(it, _)| it.worker == index)
            .unwrap();
        period.until = Some(now);
        let noticed = if fault == Fault::Cut {
            now + RECONNECTED
        } else {
            now
        };
        let tolerances = self.tolerances.iter_mut();
        for tolerance in tolerances.filter(|it| it.worker == Some(index)) {
            tolerance.until = tolerance.until.min(noticed);
        }
        self.serves(index);
    }

    fn set_loss(&mut self, index: usize) {
        let percent = [0, 15, 30][usize::try_from(self.random.below(3)).unwrap()];
        let worker = worker_name(index);
        self.record(
            "losses",
            format!("{percent} % of {worker}'s heartbeats are lost"),
        );
        self.links[index].set_loss(percent);
    }

    fn repair_all(&mut self) {
        if self.is_renamed {
            self.rename();
        }
        for index in 0..WORKERS {
            self.repair(index);
            if self.removed[index] {
                self.reconfigure(index);
            }
            self.run_verb(index, "undrain");
        }
    }

    fn kill_manager(&mut self) {
        self.record("manager kills", "the manager is killed".to_owned());
        let killed = Instant::now();
        self.cluster.kill_manager().unwrap();
        thread::sleep(Duration::from_millis(self.random.below(700)));
        self.cluster.start_manager().unwrap();
        self.absences.push((killed, Instant::now()));
        // The next manager continues the time for which this one has waited for a silent worker.
        for tolerance in &mut self.tolerances {
            if tolerance.until > killed {
                let left = tolerance.until - killed + RECOVERY_GRACE;
                tolerance.until = Instant::now() + left.min(DETECTION);
            }
        }
        // No heartbeats arrived meanwhile: a worker that was just repaired needs its first ones.
        for period in self.serving.iter_mut().filter(|it| it.until.is_none()) {
            if period.from + DETECTION > killed {
                period.from = Instant::now();
            }
        }
        self.check_long_connection("the manager was killed");
    }

    /// Checks that the long connection has outlasted the last action.
    fn check_long_connection(&mut self, after: &str) {
        self.long_connection.trials += u64::from(self.long_connection.connection.is_some());
        self.fetch_over_long_connection(after);
    }

    /// Fetches the blob over the long connection.
    fn fetch_over_long_connection(&mut self, after: &str) {
        let Some((connection, index)) = &mut self.long_connection.connection else {
            return;
        };
        self.long_connection.uses += 1;
        let fetched = connection.get("/blob");
        if !fetched
            .as_ref()
            .is_ok_and(|it| it.status == 200 && it.body == self.blob)
        {
            let error = fetched.map(|it| (it.status, it.body.len()));
            let broken = format!("of {}, after {after}: {error:?}", worker_name(*index));
            self.long_connection.broken.push(broken);
            self.long_connection.connection = None;
        }
    }

    /// Uses the long connection, or opens one to a worker without a fault.
    fn maintain_long_connection(&mut self) {
        if self.long_connection.connection.is_some() {
            return self.fetch_over_long_connection("a while");
        }
        let client = &self.cluster.topology.client;
        let Ok(mut connection) = Connection::open(client, self.cluster.service(), PATIENCE) else {
            return;
        };
        let Ok(page) = connection.get("/") else {
            return;
        };
        let page = page.first_line();
        let index = (0..WORKERS).find(|index| page == format!("Worker{}", index + 1));
        let well = index.filter(|index| self.active_fault[*index].is_none());
        self.long_connection.connection = well.map(|index| (connection, index));
    }

    fn reload(&mut self) {
        let policies = [
            "memory",
            "balanced",
            "round_robin",
            "least_connections",
            "source_hash",
        ];
        self.policy = policies[usize::try_from(self.random.below(5)).unwrap()];
        self.record("reloads", format!("reloaded with policy {}", self.policy));
        self.write_configuration();
    }

    /// Removes a worker from the configuration, or adds it again. Its open connections continue.
    fn reconfigure(&mut self, index: usize) {
        let configured = self.removed.iter().filter(|removed| !**removed).count();
        let is_removal = !self.removed[index];
        if is_removal && configured == 1 {
            return;
        }
        let verb = match is_removal {
            true => "removed",
            false => "added",
        };
        let worker = worker_name(index);
        self.record("workers removed and added", format!("{worker} is {verb}"));
        if is_removal {
            self.ends_serving(index, Instant::now());
        }
        self.removed[index] = is_removal;
        self.write_configuration();
        if !is_removal {
            self.run_verb(index, "undrain");
        }
    }

    fn write_configuration(&mut self) {
        let wanted = format!("policy = \"{}\"", self.policy);
        let text = self.configuration.replace("policy = \"memory\"", &wanted);
        let is_removed = |line: &str| {
            (0..WORKERS).any(|index| {
                let name = format!("name = \"{}\"", worker_name(index));
                self.removed[index] && line.contains(&name)
            })
        };
        let lines: Vec<_> = text.lines().filter(|line| !is_removed(line)).collect();
        let file = self.cluster.paths.directory.join("memlb.toml");
        fs::write(file, lines.join("\n")).unwrap();
        let reloaded = self.cluster.memlb("reload").output().unwrap();
        assert!(reloaded.status.success(), "{reloaded:?}");
        self.check_long_connection("a reload");
    }

    /// Another tool detaches a program.
    fn detach(&mut self) {
        let links = fs::read_dir(self.cluster.paths.pin_path.join("links")).unwrap();
        let mut links: Vec<_> = links.map(|link| link.unwrap().path()).collect();
        links.sort();
        let chosen = usize::try_from(self.random.below(links.len() as u64)).unwrap();
        let link = &links[chosen];
        self.record(
            "programs detached",
            format!("{} is detached", link.display()),
        );
        let from = Instant::now();
        self.tolerances.push(Tolerance {
            worker: None,
            from,
            until: from + REATTACHED,
            fault: Fault::Detached,
        });
        // Meanwhile the kernel resets its connections.
        self.long_connection.connection = None;
        bpftool(&["link", "detach", "pinned", link.to_str().unwrap()]).unwrap();
    }

    /// Renames the manager's interface, or restores its name. Both names lead to it.
    fn rename(&mut self) {
        let (from, to) = match self.is_renamed {
            true => (OTHER_NAME, INTERFACE),
            false => (INTERFACE, OTHER_NAME),
        };
        self.record("interfaces renamed", format!("{from} is now {to}"));
        let ip = |line: &[&str]| self.cluster.topology.manager.run("ip", line).unwrap();
        if self.is_renamed {
            ip(&["link", "property", "del", "dev", from, "altname", to]);
        }
        ip(&["link", "set", from, "name", to]);
        if !self.is_renamed {
            ip(&["link", "property", "add", "dev", to, "altname", from]);
        }
        self.is_renamed = !self.is_renamed;
        self.check_long_connection("a renamed interface");
    }

    fn run_verb(&mut self, index: usize, verb: &'static str) {
        if self.removed[index] {
            return;
        }
        let worker = worker_name(index);
        self.record("orders", format!("{verb} {worker}"));
        let started_at = Instant::now();
        if verb == "drain" {
            self.ends_serving(index, started_at);
        }
        let ordered = self.cluster.memlb(verb).arg(worker).output().unwrap();
        assert!(ordered.status.success(), "{ordered:?}");
        self.drained[index] = verb == "drain";
        if verb == "undrain" {
            self.serves(index);
            // A dead worker that is not detected yet gets connections again.
            if self.is_considered_up(index) {
                self.tolerate(index, started_at, Instant::now() + DETECTION);
            }
        }
    }

    fn signal_agent(&mut self, index: usize, signal: Signal) {
        let agent = self.cluster.agents[index].as_mut().unwrap();
        agent.signal(signal).unwrap();
    }

    fn record(&mut self, kind: &'static str, what: String) {
        *self.counts.entry(kind).or_default() += 1;
        let at = self.started.elapsed().as_secs_f64();
        self.actions.push(format!("{at:7.3} {what}"));
    }

    /// Returns the requests that failed, or were left to the manager's own server, without a reason.
    fn unexplained_failures<'a>(
        &self,
        report: &'a Report,
        history: &EventHistory,
    ) -> Vec<&'a Request> {
        let wrong = |request: &Request| match request.page() {
            None => self.reason(request, history).is_none(),
            Some("Manager") => self.had_available_worker(request, history),
            Some(_) => false,
        };
        report
            .requests
            .iter()
            .filter(|request| wrong(request))
            .collect()
    }

    /// A failure is explained by a worker that could get the request before its fault was detected, or by
    /// one that counted as down while it was answering.
    fn reason(&self, request: &Request, history: &EventHistory) -> Option<Fault> {
        let mut tolerances = self.tolerances.iter().rev();
        let tolerance = tolerances.find(|it| {
            request.sent_at + REQUEST_TIME >= it.from
                && request.sent_at <= it.until
                && it
                    .worker
                    .is_none_or(|worker| history.could_serve(worker, request.sent_at))
        });
        let cut_short = || {
            history.down.iter().any(|(at, name)| {
                request.sent_at <= *at + CLOCK_TOLERANCE
                    && request.ended_at + CLOCK_TOLERANCE >= *at
                    && self.fault_of(name, *at) == Some(Fault::Silent)
            })
        };
        tolerance
            .map(|it| it.fault)
            .or_else(|| cut_short().then_some(Fault::Silent))
    }

    fn fault_of(&self, name: &str, at: Instant) -> Option<Fault> {
        let mut faults = self.faults.iter();
        let found = faults.find(|(period, _)| {
            worker_name(period.worker) == name
                && period.from <= at
                && period.until.is_none_or(|until| at <= until + RECONNECTED)
        });
        found.map(|(_, fault)| *fault)
    }

    /// Whether a worker was without fault for long enough to be up, and not failing since an earlier fault.
    fn had_available_worker(&self, request: &Request, history: &EventHistory) -> bool {
        self.serving.iter().any(|it| {
            it.from + DETECTION <= request.sent_at
                && it.until.is_none_or(|until| request.ended_at <= until)
                && !history.is_failing(it.worker, request.sent_at)
        })
    }

    /// Returns the workers that went down or failed without a fault.
    fn false_alarms<'a>(&self, history: &'a EventHistory) -> Vec<&'a str> {
        let down = history.down.iter().map(|(at, name)| (*at, name));
        let failing = history.failing.iter().map(|(it, name)| (it.from, name));
        let failing = failing.filter(|(at, _)| !self.was_detached(*at));
        let alarms = down.chain(failing);
        let wrong = alarms.filter(|(at, name)| self.fault_of(name, *at).is_none());
        wrong.map(|(_, name)| name.as_str()).collect()
    }

    /// Whether a program was detached at about that time, so that no worker answered.
    fn was_detached(&self, at: Instant) -> bool {
        let mut detached = self.tolerances.iter().filter(|it| it.worker.is_none());
        detached.any(|it| it.from <= at && at <= it.until + RECONNECTED)
    }

    /// Returns the workers that were failing for longer than a trial takes although they served, with how long.
    fn kept_out(&self, history: &EventHistory) -> Vec<(String, Duration)> {
        let mut kept_out = Vec::new();
        for (failing, name) in &history.failing {
            let serving = self.serving.iter().filter(|it| it.worker == failing.worker);
            for serving in serving {
                let now = Instant::now();
                let until = failing
                    .until
                    .unwrap_or(now)
                    .min(serving.until.unwrap_or(now));
                let both = until.saturating_duration_since(failing.from.max(serving.from));
                let mut absences = self.absences.iter();
                let tried = absences.all(|(from, to)| *to < failing.from || until < *from);
                if both > RECOVERY && tried {
                    kept_out.push((name.clone(), both));
                }
            }
        }
        kept_out
    }

    /// Returns the longest time without a gap in which requests could fail: further workers may die before
    /// the first one is detected.
    fn longest_tolerance(&self) -> Duration {
        let mut periods: Vec<_> = self
            .tolerances
            .iter()
            .map(|it| (it.from, it.until))
            .collect();
        periods.sort();
        let mut longest = Duration::ZERO;
        let mut run: Option<(Instant, Instant)> = None;
        for (from, until) in periods {
            let (started_at, end) = run.filter(|(_, end)| from <= *end).unwrap_or((from, until));
            let joined = (started_at, end.max(until));
            longest = longest.max(joined.1.saturating_duration_since(joined.0));
            run = Some(joined);
        }
        longest
    }

    fn summary(&self, report: &Report, history: &EventHistory) -> String {
        let mut causes: BTreeMap<String, u64> = BTreeMap::new();
        for request in report.failures() {
            let why = self.reason(request, history);
            let why = why.map_or("unexplained".to_owned(), |it| format!("{it:?}"));
            let error = request.answer.as_ref().err().map_or("", String::as_str);
            *causes.entry(format!("{why}: {error}")).or_default() += 1;
        }
        let by_the_manager = report
            .requests
            .iter()
            .filter(|it| it.page() == Some("Manager"));
        format!(
            "{:?}; {} requests, {} of them answered by the manager's own server, {} failures {causes:?}, \
             longest outage {:?} where {:?} is tolerated; the long connections transferred {} blobs, {} of them \
             after a kill or a reload",
            self.counts,
            report.requests.len(),
            by_the_manager.count(),
            report.failures().count(),
            report.longest_outage(),
            self.longest_tolerance(),
            self.long_connection.uses,
            self.long_connection.trials,
        )
    }

    /// Adds the events and the failed requests, with their reasons, to the actions.
    fn record_failures(&mut self, report: &Report, history: &EventHistory) {
        let since_start = |at: Instant| at.saturating_duration_since(self.started).as_secs_f64();
        let events = [
            ("selected", &history.selected),
            ("down", &history.down),
            ("up", &history.up),
        ];
        let mut lines = Vec::new();
        for (kind, events) in events {
            for (at, name) in events {
                lines.push(format!("{:7.3}     event: {kind} {name}", since_start(*at)));
            }
        }
        for request in report.failures() {
            let at = since_start(request.sent_at);
            let took = request.ended_at - request.sent_at;
            let reason = self.reason(request, history);
            let answer = &request.answer;
            lines.push(format!(
                "{at:7.3}   failed after {took:?}: {answer:?}, by {reason:?}"
            ));
        }
        self.actions.extend(lines);
        self.actions.sort();
    }

    fn actions(&self) -> String {
        self.actions.join("\n")
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}
