//! Three managers behind an ECMP router: one dies, one withdraws, one returns.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    Probe,
    command::{output, run},
    notice::print_message,
    root_test,
    scale_out::{Held, Laboratory, SERVICE4, SERVICE6},
};

const MANAGERS: u8 = 3;
/// BFD's 150 ms, BGP's withdrawal and the kernel's routes; a busy machine takes longer.
const ROUTED: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of that age have reached every peer.
const OLD: Duration = Duration::from_secs(1);
const FLOWS: u16 = 600;
/// Connections that are open all the time, some of which must survive everything.
const HELD: usize = 1_200;
const SURVIVE: f64 = 0.999;

#[root_test]
fn bird_and_frr_accept_the_files() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ha");
    for name in ["bird-manager.conf", "bird-router.conf"] {
        run(Command::new("bird")
            .args(["-p", "-c"])
            .arg(files.join(name)))
        .unwrap();
    }
    for name in ["frr-manager.conf", "frr-router.conf"] {
        let check = |file: &Path| output(Command::new("vtysh").args(["-C", "-f"]).arg(file));
        check(&files.join(name)).unwrap();
        // The parser reads the whole file.
        let text = fs::read_to_string(files.join(name)).unwrap();
        let wrong = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            &wrong,
            text.replace("detect-multiplier", "detect-multiplicator"),
        )
        .unwrap();
        check(wrong.path()).unwrap_err();
    }
}

#[root_test]
fn managers_are_added_and_removed_behind_ecmp() {
    let mut testbed = Testbed::start();
    for service in [SERVICE4, SERVICE6] {
        let mut client = testbed.laboratory.connect(service, PATIENCE).unwrap();
        assert!(client.get("/").unwrap().first_line().starts_with("Worker"));
    }
    for manager in &testbed.laboratory.managers {
        assert_eq!(testbed.hops(manager.nat4()), [manager.address4()]);
    }
    let before = testbed.laboratory.spread(FLOWS).unwrap();
    let used: BTreeSet<_> = before.iter().collect();
    assert_eq!(used.len(), usize::from(MANAGERS));

    testbed.one_dies();
    testbed.print_moved_connections(&before);
    testbed.it_returns();
    testbed.one_withdraws();
    testbed.a_process_restarts();
    testbed.bird_dies();
}

/// The laboratory, and its clients: some hold connections, one opens a new one every 10 ms.
struct Testbed {
    laboratory: Laboratory,
    held: Held,
    probe: Probe,
}

impl Testbed {
    fn start() -> Self {
        let laboratory = Laboratory::start(MANAGERS).unwrap();
        let (client, service) = (&laboratory.network.client, laboratory.service().unwrap());
        let held = Held::open(client, service, HELD, PATIENCE).unwrap();
        let every = Duration::from_millis(10);
        let probe = Probe::start(client, service, every, PATIENCE).unwrap();
        thread::sleep(OLD);
        Self {
            laboratory,
            held,
            probe,
        }
    }

    /// The first manager's machine is cut off.
    fn one_dies(&mut self) {
        let dead = self.laboratory.managers[0].nat4();
        let cut_at = Instant::now();
        self.laboratory.managers[0].disconnect().unwrap();
        let took = self.routes(2);
        // Its NAT address is with the others.
        let others = [1, 2].map(|index: usize| self.laboratory.managers[index].address4());
        assert_eq!(self.hops(dead), others);
        let outcome = self.held.request_pages().unwrap();
        self.wait_for_answers();
        let longest = self.probe.report().since(cut_at).longest_outage();
        print_message(format_args!(
            "a manager dies: its routes are gone after {took:?}; a client's longest time without a page is \
             {longest:?}; {outcome:?}"
        ));
        assert!(longest < ROUTED, "{longest:?} without a page");
        let lost = outcome.lost as f64 / outcome.requested as f64;
        assert!(lost <= 1.0 - SURVIVE, "{outcome:?}");
    }

    /// The machine boots, and its manager takes connections again.
    fn it_returns(&mut self) {
        self.without_loss("a manager returns", |laboratory| {
            let first = &mut laboratory.managers[0];
            first.boot().unwrap();
            first.start().unwrap();
            first.wait_until_ready().unwrap();
            routes(laboratory, 3)
        });
    }

    /// The second manager withdraws, and announces again.
    fn one_withdraws(&mut self) {
        self.without_loss("a manager withdraws", |laboratory| {
            laboratory.managers[1].withdraw().unwrap();
            routes(laboratory, 2)
        });
        self.without_loss("it announces again", |laboratory| {
            laboratory.managers[1].announce().unwrap();
            routes(laboratory, 3)
        });
    }

    /// A manager process that is killed and started again is no reason to withdraw; one that stays away is.
    fn a_process_restarts(&mut self) {
        self.without_loss("a manager's process is killed", |laboratory| {
            laboratory.managers[2].kill_memlb().unwrap();
            thread::sleep(Duration::from_secs(1));
            assert_eq!(laboratory.next_hops(SERVICE4).unwrap().len(), 3);
            routes(laboratory, 2)
        });
        self.without_loss("it is started again", |laboratory| {
            laboratory.managers[2].start_memlb().unwrap();
            routes(laboratory, 3)
        });
    }

    /// BIRD's death is one of BFD, too.
    fn bird_dies(&mut self) {
        self.without_loss("BIRD is killed", |laboratory| {
            laboratory.managers[2].kill_bird().unwrap();
            routes(laboratory, 2)
        });
        self.without_loss("it is started again", |laboratory| {
            laboratory.managers[2].start_bird().unwrap();
            routes(laboratory, 3)
        });
    }

    /// Lets `act` change something, after which every connection must be there and no request may have failed.
    fn without_loss(&mut self, what: &str, act: impl FnOnce(&mut Laboratory) -> Duration) {
        let began = Instant::now();
        let took = act(&mut self.laboratory);
        let outcome = self.held.request_pages().unwrap();
        self.wait_for_answers();
        let report = self.probe.report().since(began);
        print_message(format_args!(
            "{what}: routes as they should be after {took:?}; a client's longest time without a page is {:?}; {outcome:?}",
            report.longest_outage()
        ));
        report.assert_no_failure();
        assert_eq!(outcome.lost, 0);
    }

    fn routes(&self, managers: usize) -> Duration {
        routes(&self.laboratory, managers)
    }

    fn hops(&self, address: IpAddr) -> Vec<IpAddr> {
        self.laboratory.next_hops(&address.to_string()).unwrap()
    }

    fn wait_for_answers(&self) {
        let now = Instant::now();
        self.probe.wait_for_answers(now, PATIENCE * 2).unwrap();
    }

    /// Says how many connections have another manager now than `before`, although theirs is there.
    fn print_moved_connections(&self, before: &[IpAddr]) {
        let after = self.laboratory.spread(FLOWS).unwrap();
        let living: BTreeSet<_> = after.iter().collect();
        let moved: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .collect();
        let needless = moved
            .iter()
            .filter(|(before, _)| living.contains(before))
            .count();
        print_message(format_args!(
            "one of three gone, without resilient hashing: {} of {FLOWS} connections moved, {needless} of them although \
             their manager lives",
            moved.len()
        ));
    }
}

/// Waits until the router has so many routes to both addresses of the service.
fn routes(laboratory: &Laboratory, managers: usize) -> Duration {
    let wait = |address: &str| laboratory.wait_for_routes(address.parse().unwrap(), managers, SOON);
    let took = wait(SERVICE4).unwrap();
    wait(SERVICE6).unwrap();
    took
}
