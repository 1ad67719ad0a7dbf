//! Three managers behind a router that spreads connections over them: one dies, one withdraws, one returns.

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
    notice::say,
    root_test,
    scale_out::{Laboratory, SERVICE4, SERVICE6},
};

const MANAGERS: u8 = 3;
/// BFD's 150 ms, BGP's withdrawal and the kernel's routes; a busy machine takes longer.
const ROUTED: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(5);
const FLOWS: u16 = 600;

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
fn managers_come_and_go_behind_ecmp() {
    let mut laboratory = Laboratory::start(MANAGERS).unwrap();
    for service in [SERVICE4, SERVICE6] {
        let mut client = laboratory.connect(service, PATIENCE).unwrap();
        assert!(client.get("/").unwrap().first_line().starts_with("Worker"));
    }
    for manager in &laboratory.managers {
        assert_eq!(hops(&laboratory, manager.nat4()), [manager.address4()]);
    }
    let before = laboratory.spread(FLOWS).unwrap();
    let used: BTreeSet<_> = before.iter().collect();
    assert_eq!(used.len(), usize::from(MANAGERS));

    let probe = probe(&laboratory);
    dies(&mut laboratory, &probe);
    moved(
        &laboratory,
        &before,
        "without resilient hashing, one of three has died",
    );
    returns(&mut laboratory, &probe);
    withdraws(&mut laboratory, &probe);
    restarts(&mut laboratory, &probe);
}

/// The first manager's machine is cut off.
fn dies(laboratory: &mut Laboratory, probe: &Probe) {
    let dead = laboratory.managers[0].nat4();
    let cut_at = Instant::now();
    laboratory.managers[0].cut_off().unwrap();
    let took = routes(laboratory, 2);
    let longest = longest_outage(probe, cut_at);
    say(format_args!(
        "a manager dies: its routes are gone after {took:?}; a client's longest time without a page is {longest:?}"
    ));
    // Its NAT address is with the others.
    let others = [
        laboratory.managers[1].address4(),
        laboratory.managers[2].address4(),
    ];
    assert_eq!(hops(laboratory, dead), others);
}

/// The machine boots, and its manager takes connections again.
fn returns(laboratory: &mut Laboratory, probe: &Probe) {
    let began = Instant::now();
    let first = &mut laboratory.managers[0];
    first.boot().unwrap();
    first.start().unwrap();
    routes(laboratory, 3);
    settle(laboratory, probe);
    probe.report().since(began).expect_no_failure();
}

/// The second manager withdraws, and announces again.
fn withdraws(laboratory: &mut Laboratory, probe: &Probe) {
    let began = Instant::now();
    laboratory.managers[1].withdraw().unwrap();
    let took = routes(laboratory, 2);
    say(format_args!(
        "a manager withdraws: its routes are gone after {took:?}"
    ));
    settle(laboratory, probe);
    laboratory.managers[1].announce().unwrap();
    routes(laboratory, 3);
    settle(laboratory, probe);
    probe.report().since(began).expect_no_failure();
}

/// A manager process that is killed and started again is no reason to withdraw; one that stays away is.
fn restarts(laboratory: &mut Laboratory, probe: &Probe) {
    let began = Instant::now();
    laboratory.managers[2].kill_memlb().unwrap();
    thread::sleep(Duration::from_secs(1));
    laboratory.managers[2].start_memlb().unwrap();
    assert_eq!(laboratory.next_hops(SERVICE4).unwrap().len(), 3);
    laboratory.managers[2].kill_memlb().unwrap();
    routes(laboratory, 2);
    settle(laboratory, probe);
    laboratory.managers[2].start_memlb().unwrap();
    routes(laboratory, 3);
    // BIRD's death is one of BFD, too.
    laboratory.managers[2].kill_bird().unwrap();
    let took = routes(laboratory, 2);
    say(format_args!(
        "BIRD is killed: its routes are gone after {took:?}"
    ));
    laboratory.managers[2].start_bird().unwrap();
    routes(laboratory, 3);
    settle(laboratory, probe);
    probe.report().since(began).expect_no_failure();
}

fn probe(laboratory: &Laboratory) -> Probe {
    let service = laboratory.service().unwrap();
    let every = Duration::from_millis(10);
    Probe::start(&laboratory.network.client, service, every, PATIENCE).unwrap()
}

/// Waits until the router has so many routes to both addresses of the service.
fn routes(laboratory: &Laboratory, managers: usize) -> Duration {
    let wait = |address: &str| laboratory.wait_for_routes(address.parse().unwrap(), managers, SOON);
    let took = wait(SERVICE4).unwrap();
    wait(SERVICE6).unwrap();
    took
}

/// Waits until the answers to all requests until now are there.
fn settle(_: &Laboratory, probe: &Probe) {
    probe
        .wait_for_answers(Instant::now(), PATIENCE * 2)
        .unwrap();
}

fn longest_outage(probe: &Probe, since: Instant) -> Duration {
    probe
        .wait_for_answers(Instant::now(), PATIENCE * 2)
        .unwrap();
    let longest = probe.report().since(since).longest_outage();
    assert!(longest < ROUTED, "{longest:?} without a page");
    longest
}

fn hops(laboratory: &Laboratory, address: IpAddr) -> Vec<IpAddr> {
    laboratory.next_hops(&address.to_string()).unwrap()
}

/// Says how many connections go to another manager than before, although theirs is there.
fn moved(laboratory: &Laboratory, before: &[IpAddr], what: &str) {
    let after = laboratory.spread(FLOWS).unwrap();
    let living: BTreeSet<_> = after.iter().collect();
    let pairs = || before.iter().zip(&after);
    let moved = pairs().filter(|(before, after)| before != after).count();
    let needless = pairs().filter(|(before, after)| before != after && living.contains(before));
    say(format_args!(
        "{what}: {moved} of {FLOWS} connections moved, {} of them although their manager lives",
        needless.count()
    ));
}
