//! Everything at once: workers die, links are cut, heartbeats stop or get lost, the manager is killed, reloaded with other
//! policies and workers, and told to drain, its programs are detached and its interface is renamed, all by a seed, while
//! clients ask without pause and check what they get.
//!
//! `MEMLB_CHAOS_SECONDS` (60) says how long, `MEMLB_CHAOS_SEED` (1) which history, `MEMLB_KILLS` (10)
//! how often the manager is killed where that is all that happens.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    env, fs, thread,
    time::{Duration, Instant, SystemTime},
};

use lb_core::ALL_WORKERS;
use memlb_tests::{
    Cluster, ClusterOptions, Connection, LossyLink, Nginx, Probe, Process, Report,
    cluster::{worker_name, worker_port},
    observe::bpftool,
    probe::Request,
    root_test,
    transfer::random_bytes,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);
const WORKERS: usize = 3;

/// `down_after` by default, and what a busy machine may be late.
const DETECTION: Duration = lb_core::DEFAULT_DOWN_AFTER.saturating_add(Duration::from_millis(400));

/// How long a manager waits at least for a worker that was late when the one before it was killed.
const HEARD_AGAIN: Duration = Duration::from_millis(300);

/// What a request may have been under way before the fault that ended it.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// By how much the manager's word of when something happened may differ from what a client saw.
const NEARLY: Duration = Duration::from_millis(50);

/// How long the network may take to find a worker again whose cable is back; what was said meanwhile
/// arrives late.
const FOUND_AGAIN: Duration = Duration::from_secs(1);

/// The time in which a manager detects a detached program and attaches it again.
const RESTORED: Duration = Duration::from_millis(1_000 + 500);

/// The manager's interface, and its other name.
const INTERFACE: &str = "eth1";
const OTHER_NAME: &str = "lan1";

/// How long the connection that is kept waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a busy machine may keep clients waiting beside.
const SLACK: Duration = Duration::from_millis(500);

#[root_test]
fn only_a_workers_own_death_is_felt_and_only_until_it_is_noticed() {
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
        chaos.keep();
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
    let told = Told::read(&chaos.cluster);
    chaos.excuse_late(&told);
    println!(
        "seed {seed}, {seconds} s: {}",
        chaos.account(&report, &told)
    );
    if env::var_os("MEMLB_CHAOS_STORY").is_some() {
        chaos.tell_failures(&report);
        println!("{}", chaos.story());
    }
    let unexplained = chaos.judge(&report, &told);
    assert!(
        unexplained.is_empty(),
        "seed {seed}: {} unexplained, the first: {:?}\n{}",
        unexplained.len(),
        unexplained[0],
        chaos.story()
    );
    let false_alarms = chaos.false_alarms(&told);
    assert!(
        false_alarms.is_empty(),
        "seed {seed}: {false_alarms:?}\n{}",
        chaos.story()
    );
    let page = |request: &Request| {
        request
            .page()
            .is_none_or(|page| page == "Manager" || page.starts_with("Worker"))
    };
    assert!(report.requests.iter().all(page));
    assert!(
        report.requests.len() as u64 > seconds * 20,
        "too few to tell"
    );
    let (outage, bound) = (report.longest_outage(), chaos.longest_excuse() + SLACK);
    assert!(
        outage <= bound,
        "seed {seed}: out for {outage:?}, not {bound:?}\n{}",
        chaos.story()
    );
    let kept = &chaos.kept;
    assert!(
        kept.broken.is_empty(),
        "seed {seed}: {:?}\n{}",
        kept.broken,
        chaos.story()
    );
    assert!(kept.uses > seconds / 4 && kept.trials > 0, "{kept:?}");
}

#[root_test]
fn kills_at_any_instant_are_not_felt() {
    let (kills, seed) = (number("MEMLB_KILLS", 10), number("MEMLB_CHAOS_SEED", 1));
    let mut random = Random(seed);
    let mut cluster = Cluster::start_serving(&ClusterOptions::default()).unwrap();
    let client = &cluster.topology.client;
    let mut kept = Connection::open(client, cluster.service(), SOON).unwrap();
    let probe = cluster.probe(Duration::from_millis(5)).unwrap();
    cluster.kill_manager().unwrap();
    for _ in 0..kills {
        let mut command = cluster.manager_command();
        let log = cluster.paths.directory.join("manager.log");
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
        report.requests.len(),
        report.longest_outage()
    );
    report.expect_no_failure();
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
    /// A program is detached, so no worker is reached.
    Detached,
}

/// A time in which requests to a worker may fail, and why.
#[derive(Debug)]
struct Excuse {
    /// `None`: all workers.
    worker: Option<usize>,
    from: Instant,
    until: Instant,
    ailment: Ailment,
}

/// A time in which something was so with a worker.
#[derive(Debug)]
struct Spell {
    worker: usize,
    from: Instant,
    until: Option<Instant>,
}

/// What the event log has to say of the whole time.
struct Told {
    /// To whom new connections went from when on.
    selected: Vec<(Instant, String)>,
    /// Which workers went down, and when.
    down: Vec<(Instant, String)>,
    /// Which came up.
    up: Vec<(Instant, String)>,
}

impl Told {
    fn read(cluster: &Cluster) -> Self {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let (mut selected, mut down, mut up) = (Vec::new(), Vec::new(), Vec::new());
        for event in cluster.events().unwrap() {
            let time = humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
            let at = now - clock.duration_since(time).unwrap();
            let name = |field: &str| event[field].as_str().unwrap().to_owned();
            match event["event"].as_str().unwrap() {
                "selection_changed" | "selection_adopted" => selected.push((at, name("to"))),
                "worker_down" => down.push((at, name("worker"))),
                "worker_up" => up.push((at, name("worker"))),
                _ => {}
            }
        }
        Self { selected, down, up }
    }

    /// Returns whether a new connection could go to that worker about then.
    fn could_serve(&self, worker: usize, at: Instant) -> bool {
        let name = worker_name(worker);
        let next = self.selected.iter().skip(1).map(|(next, _)| Some(*next));
        let spells = self.selected.iter().zip(next.chain([None]));
        spells
            .filter(|((from, _), until)| {
                *from <= at + NEARLY && until.is_none_or(|until| until + NEARLY >= at)
            })
            .any(|((_, to), _)| to == ALL_WORKERS || *to == name)
    }
}

/// A connection that must live as long as its worker, whatever becomes of the manager.
#[derive(Debug, Default)]
struct Kept {
    connection: Option<(Connection, usize)>,
    /// How often it has brought the whole blob.
    uses: u64,
    /// How often it did after the manager was killed or reloaded.
    trials: u64,
    broken: Vec<String>,
}

struct Chaos {
    cluster: Cluster,
    random: Random,
    /// Between each agent and the manager.
    links: Vec<LossyLink>,
    ailing: [Option<Ailment>; WORKERS],
    drained: [bool; WORKERS],
    /// Not in the configuration.
    removed: [bool; WORKERS],
    policy: &'static str,
    is_renamed: bool,
    excuses: Vec<Excuse>,
    ailments: Vec<(Spell, Ailment)>,
    /// When each worker was well and not drained.
    serving: Vec<Spell>,
    kept: Kept,
    blob: Vec<u8>,
    happened: BTreeMap<&'static str, u64>,
    story: Vec<String>,
    started: Instant,
    configuration: String,
}

impl Chaos {
    fn start(seed: u64) -> Self {
        let cluster = Cluster::start(&ClusterOptions {
            available_kb: vec![450 * 1024, 400 * 1024, 350 * 1024],
            agents: false,
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
            ailing: [None; WORKERS],
            drained: [false; WORKERS],
            removed: [false; WORKERS],
            policy: "memory",
            is_renamed: false,
            excuses: Vec::new(),
            ailments: Vec::new(),
            serving: Vec::new(),
            kept: Kept::default(),
            blob,
            happened: BTreeMap::new(),
            story: Vec::new(),
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

    /// One thing happens.
    fn happen(&mut self) {
        let index = usize::try_from(self.random.below(WORKERS as u64)).unwrap();
        match self.random.below(15) {
            0..5 => match self.ailing[index] {
                Some(_) => self.heal(index),
                None => self.ail(index),
            },
            5 | 6 => self.kill_manager(),
            7 => self.reload(),
            8 => self.order(index, "drain"),
            9 => self.order(index, "undrain"),
            10 | 11 => self.reconfigure(index),
            12 => self.detach(),
            13 => self.rename(),
            _ => self.lose(index),
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
            _ => self.signal_agent(index, Signal::SIGSTOP),
        }
        self.ailing[index] = Some(ailment);
        let spell = Spell {
            worker: index,
            from,
            until: None,
        };
        self.ailments.push((spell, ailment));
        self.serves_no_more(index, from);
        if self
            .kept
            .connection
            .as_ref()
            .is_some_and(|it| it.1 == index)
        {
            self.kept.connection = None;
        }
        // Who had no new connections, being drained or not heard of again, takes none with it.
        if self.is_thought_up(index) {
            self.excuse_from(index, from, from + DETECTION);
        }
    }

    fn is_thought_up(&self, index: usize) -> bool {
        let backend = self.cluster.backend(&worker_name(index));
        !self.removed[index] && backend.unwrap()["state"] == "up"
    }

    /// Excuses failures by a worker that cannot answer; one that is only not heard does.
    fn excuse_from(&mut self, index: usize, from: Instant, until: Instant) {
        if let Some(ailment @ (Ailment::Dead | Ailment::Cut)) = self.ailing[index] {
            self.excuses.push(Excuse {
                worker: Some(index),
                from,
                until,
                ailment,
            });
        }
    }

    /// Excuses failures by a worker that died before its own words of having come back were heard.
    fn excuse_late(&mut self, told: &Told) {
        for (at, name) in &told.up {
            let ailing = self.ailments.iter().find(|(spell, _)| {
                worker_name(spell.worker) == *name
                    && spell.from <= *at
                    && *at <= spell.from + FOUND_AGAIN
                    && spell.until.is_none_or(|until| *at <= until)
            });
            if let Some((spell, ailment @ (Ailment::Dead | Ailment::Cut))) = ailing {
                let noticed = *at + DETECTION;
                self.excuses.push(Excuse {
                    worker: Some(spell.worker),
                    from: *at,
                    until: spell.until.map_or(noticed, |until| until.min(noticed)),
                    ailment: *ailment,
                });
            }
        }
    }

    fn serves(&mut self, index: usize) {
        let open = self
            .serving
            .iter()
            .any(|it| it.worker == index && it.until.is_none());
        let is_well = self.ailing[index].is_none() && !self.drained[index];
        if is_well && !self.removed[index] && !open {
            self.serving.push(Spell {
                worker: index,
                from: Instant::now(),
                until: None,
            });
        }
    }

    fn serves_no_more(&mut self, index: usize, at: Instant) {
        let mut serving = self.serving.iter_mut();
        if let Some(spell) = serving.find(|it| it.worker == index && it.until.is_none()) {
            spell.until = Some(at);
        }
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
                let directory = self.cluster.paths.directory.join(worker_name(index));
                let page = format!("Worker{}", index + 1);
                let port = worker_port(index).unwrap();
                self.cluster.servers[index] =
                    Nginx::start(worker, port, &page, &directory).unwrap();
                self.start_agent(index);
            }
            Ailment::Cut => self.cluster.topology.workers[index].reconnect().unwrap(),
            _ => self.signal_agent(index, Signal::SIGCONT),
        }
        let now = Instant::now();
        let (spell, _) = self
            .ailments
            .iter_mut()
            .rfind(|(it, _)| it.worker == index)
            .unwrap();
        spell.until = Some(now);
        let noticed = if ailment == Ailment::Cut {
            now + FOUND_AGAIN
        } else {
            now
        };
        let excuses = self.excuses.iter_mut();
        for excuse in excuses.filter(|it| it.worker == Some(index)) {
            excuse.until = excuse.until.min(noticed);
        }
        self.serves(index);
    }

    fn lose(&mut self, index: usize) {
        let percent = [0, 15, 30][usize::try_from(self.random.below(3)).unwrap()];
        let worker = worker_name(index);
        self.tell(
            "losses",
            format!("{percent} % of {worker}'s heartbeats are lost"),
        );
        self.links[index].set_loss(percent);
    }

    fn heal_all(&mut self) {
        if self.is_renamed {
            self.rename();
        }
        for index in 0..WORKERS {
            self.heal(index);
            if self.removed[index] {
                self.reconfigure(index);
            }
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
        // Nobody was heard meanwhile: who had just become well must be heard first.
        for spell in self.serving.iter_mut().filter(|it| it.until.is_none()) {
            if spell.from + DETECTION > killed {
                spell.from = Instant::now();
            }
        }
        self.try_kept("the manager was killed");
    }

    /// Sees whether the connection that is kept has outlived what just happened.
    fn try_kept(&mut self, after: &str) {
        self.kept.trials += u64::from(self.kept.connection.is_some());
        self.use_kept(after);
    }

    /// Fetches the blob over the connection that is kept.
    fn use_kept(&mut self, after: &str) {
        let Some((connection, index)) = &mut self.kept.connection else {
            return;
        };
        self.kept.uses += 1;
        let fetched = connection.get("/blob");
        if !fetched
            .as_ref()
            .is_ok_and(|it| it.status == 200 && it.body == self.blob)
        {
            let error = fetched.map(|it| (it.status, it.body.len()));
            let broken = format!("of {}, after {after}: {error:?}", worker_name(*index));
            self.kept.broken.push(broken);
            self.kept.connection = None;
        }
    }

    /// Opens a connection to keep where there is none, to a worker that is well.
    fn keep(&mut self) {
        if self.kept.connection.is_some() {
            return self.use_kept("a while");
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
        let well = index.filter(|index| self.ailing[*index].is_none());
        self.kept.connection = well.map(|index| (connection, index));
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
        self.tell("reloads", format!("reloaded with policy {}", self.policy));
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
        self.tell("workers removed and added", format!("{worker} is {verb}"));
        if is_removal {
            self.serves_no_more(index, Instant::now());
        }
        self.removed[index] = is_removal;
        self.write_configuration();
        if !is_removal {
            self.order(index, "undrain");
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
        self.try_kept("a reload");
    }

    /// Another tool detaches a program.
    fn detach(&mut self) {
        let links = fs::read_dir(self.cluster.paths.pin_path.join("links")).unwrap();
        let mut links: Vec<_> = links.map(|link| link.unwrap().path()).collect();
        links.sort();
        let chosen = usize::try_from(self.random.below(links.len() as u64)).unwrap();
        let link = &links[chosen];
        self.tell(
            "programs detached",
            format!("{} is detached", link.display()),
        );
        let from = Instant::now();
        self.excuses.push(Excuse {
            worker: None,
            from,
            until: from + RESTORED,
            ailment: Ailment::Detached,
        });
        // Meanwhile the kernel resets its connections.
        self.kept.connection = None;
        bpftool(&["link", "detach", "pinned", link.to_str().unwrap()]).unwrap();
    }

    /// Renames the manager's interface, or restores its name. Both names lead to it.
    fn rename(&mut self) {
        let (from, to) = match self.is_renamed {
            true => (OTHER_NAME, INTERFACE),
            false => (INTERFACE, OTHER_NAME),
        };
        self.tell("interfaces renamed", format!("{from} is now {to}"));
        let ip = |line: &[&str]| self.cluster.topology.manager.run("ip", line).unwrap();
        if self.is_renamed {
            ip(&["link", "property", "del", "dev", from, "altname", to]);
        }
        ip(&["link", "set", from, "name", to]);
        if !self.is_renamed {
            ip(&["link", "property", "add", "dev", to, "altname", from]);
        }
        self.is_renamed = !self.is_renamed;
        self.try_kept("a renamed interface");
    }

    fn order(&mut self, index: usize, verb: &'static str) {
        if self.removed[index] {
            return;
        }
        let worker = worker_name(index);
        self.tell("orders", format!("{verb} {worker}"));
        let begun = Instant::now();
        if verb == "drain" {
            self.serves_no_more(index, begun);
        }
        let ordered = self.cluster.memlb(verb).arg(worker).output().unwrap();
        assert!(ordered.status.success(), "{ordered:?}");
        self.drained[index] = verb == "drain";
        if verb == "undrain" {
            self.serves(index);
            // Whose death is not noticed yet takes connections again.
            if self.is_thought_up(index) {
                self.excuse_from(index, begun, Instant::now() + DETECTION);
            }
        }
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

    /// Returns the requests that failed, or were left to the manager's own server, without a reason.
    fn judge<'a>(&self, report: &'a Report, told: &Told) -> Vec<&'a Request> {
        let wrong = |request: &Request| match request.page() {
            None => self.reason(request, told).is_none(),
            Some("Manager") => self.had_a_worker(request),
            Some(_) => false,
        };
        report
            .requests
            .iter()
            .filter(|request| wrong(request))
            .collect()
    }

    /// A failure is explained by a worker that could have been asked while its death was not noticed
    /// yet, or by one that was not heard of any more while it was answering.
    fn reason(&self, request: &Request, told: &Told) -> Option<Ailment> {
        let mut excuses = self.excuses.iter().rev();
        let excuse = excuses.find(|it| {
            request.sent_at + UNDER_WAY >= it.from
                && request.sent_at <= it.until
                && it
                    .worker
                    .is_none_or(|worker| told.could_serve(worker, request.sent_at))
        });
        let cut_short = || {
            told.down.iter().any(|(at, name)| {
                request.sent_at <= *at + NEARLY
                    && request.ended_at + NEARLY >= *at
                    && self.ailment_of(name, *at) == Some(Ailment::Mute)
            })
        };
        excuse
            .map(|it| it.ailment)
            .or_else(|| cut_short().then_some(Ailment::Mute))
    }

    fn ailment_of(&self, name: &str, at: Instant) -> Option<Ailment> {
        let mut ailments = self.ailments.iter();
        let found = ailments.find(|(spell, _)| {
            worker_name(spell.worker) == name
                && spell.from <= at
                && spell.until.is_none_or(|until| at <= until + FOUND_AGAIN)
        });
        found.map(|(_, ailment)| *ailment)
    }

    /// Returns whether a worker was well, and had been for long enough to be known to be.
    fn had_a_worker(&self, request: &Request) -> bool {
        self.serving.iter().any(|it| {
            it.from + DETECTION <= request.sent_at
                && it.until.is_none_or(|until| request.ended_at <= until)
        })
    }

    /// Returns the workers that were thought dead without being so.
    fn false_alarms<'a>(&self, told: &'a Told) -> Vec<&'a str> {
        let alarms = told.down.iter();
        let wrong = alarms.filter(|(at, name)| self.ailment_of(name, *at).is_none());
        wrong.map(|(_, name)| name.as_str()).collect()
    }

    /// Returns how long at a stretch requests could fail: one worker after the other may die while
    /// the first one's death is not noticed yet.
    fn longest_excuse(&self) -> Duration {
        let mut spells: Vec<_> = self.excuses.iter().map(|it| (it.from, it.until)).collect();
        spells.sort();
        let mut longest = Duration::ZERO;
        let mut run: Option<(Instant, Instant)> = None;
        for (from, until) in spells {
            let (begun, end) = run.filter(|(_, end)| from <= *end).unwrap_or((from, until));
            let joined = (begun, end.max(until));
            longest = longest.max(joined.1.saturating_duration_since(joined.0));
            run = Some(joined);
        }
        longest
    }

    fn account(&self, report: &Report, told: &Told) -> String {
        let mut causes: BTreeMap<String, u64> = BTreeMap::new();
        for request in report.failures() {
            let why = self.reason(request, told);
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
             longest outage {:?} where {:?} is excused; the kept connections brought {} blobs, {} of them \
             after a kill or a reload",
            self.happened,
            report.requests.len(),
            by_the_manager.count(),
            report.failures().count(),
            report.longest_outage(),
            self.longest_excuse(),
            self.kept.uses,
            self.kept.trials,
        )
    }

    /// Adds to the story when requests failed.
    fn tell_failures(&mut self, report: &Report) {
        for request in report.failures() {
            let at = (request.sent_at - self.started).as_secs_f64();
            let took = request.ended_at - request.sent_at;
            let line = format!("{at:7.3}   failed after {took:?}: {:?}", request.answer);
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
