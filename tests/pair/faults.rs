//! Faults of parts of a pair: programs, the network, one controller's clock.

use std::{
    fs,
    net::SocketAddrV4,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{
    client,
    command::output,
    eventually,
    pair::{Listener, Manager, Pair, SERVICE_ADDRESS, Turnover, WEB_PORT},
    syn,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::testbed::{BUSY, SOON, Testbed};

const SILENCE: Duration = Duration::from_secs(10);
const ROUTER: Duration = Duration::from_secs(5);
/// How long a controller is away.
const AWAY: Duration = Duration::from_secs(1);
/// What the queue for a peer and its frames take, and as much again.
const MEMORY_KB: u64 = 16 * 1024;
const FLOOD_PER_SECOND: u32 = 100_000;

impl Testbed {
    pub fn keeps_a_worker_drained(&mut self) {
        let active = self.active();
        let order = |testbed: &mut Self, verb| {
            output(testbed.manager(active).memlb(verb).arg("worker1")).unwrap();
        };
        order(self, "drain");
        let is_draining = |status: &Value| {
            let services = status["services"].as_array().into_iter().flatten();
            let mut backends =
                services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
            let mut of_worker = backends.by_ref().filter(|it| it["name"] == "worker1");
            of_worker.all(|it| it["state"] == "draining")
        };
        self.pair.managers[1 - active]
            .wait_for_status(SOON, "worker1 draining", is_draining)
            .unwrap();
        self.hands_over_once();
        for _ in 0..20 {
            assert_eq!(self.page(), "Worker2");
        }
        order(self, "undrain");
        eventually(SOON, "worker1 to be used again", || {
            self.page() == "Worker1"
        });
    }

    fn page(&self) -> String {
        let client = &self.pair.network.client;
        let response = client::get(client, Pair::service(WEB_PORT), "/", SOON).unwrap();
        response.first_line()
    }

    /// A client that only listens sends nothing that would show the managers its new way.
    pub fn survives_the_failure_of_a_router(&mut self) {
        let network = &self.pair.network;
        let mut listeners: Vec<_> = (0..5)
            .map(|_| Listener::open(&network.client).unwrap())
            .collect();
        network.routers[0].disconnect().unwrap();
        let died = Instant::now();
        network.route_by(1).unwrap();
        for listener in &mut listeners {
            listener.discard_received().unwrap();
        }
        for listener in &mut listeners {
            let left = (died + ROUTER).saturating_duration_since(Instant::now());
            listener.receive(left).unwrap();
        }
        println!("those that listen go on after {:?}", died.elapsed());
    }

    pub fn survives_the_death_of_its_controllers(&mut self) {
        let active = self.active();
        for index in [active, 1 - active] {
            let manager = self.manager(index);
            manager.kill_controller().unwrap();
            let mut status = manager.memlb("status");
            let status = status.arg("--pin-path").arg(&manager.paths.pin_path);
            let shown = String::from_utf8(status.output().unwrap().stdout).unwrap();
            assert!(
                shown.contains("gets packets of unknown connections"),
                "{shown}"
            );
            thread::sleep(AWAY);
            self.manager(index).start_controller().unwrap();
            self.pair.wait_until_complete(SOON).unwrap();
        }
    }

    pub fn survives_the_death_of_keepalived(&mut self) {
        let active = self.active();
        self.manager(active).kill_keepalived().unwrap();
        self.two_are_active();
        self.manager(active).start_keepalived().unwrap();
        self.pair.wait_until_active(1 - active, SOON).unwrap();
    }

    /// What is established between the kill and the take-over is known to the machine without a controller alone, to
    /// which the other one relays it.
    pub fn survives_the_death_of_both_programs(&mut self) {
        let active = self.active();
        self.manager(active).kill_controller().unwrap();
        self.manager(active).kill_keepalived().unwrap();
        self.two_are_active();
        thread::sleep(AWAY);
        self.manager(active).start_controller().unwrap();
        self.manager(active).start_keepalived().unwrap();
        self.pair.wait_until_active(1 - active, SOON).unwrap();
        self.pair.wait_until_complete(SOON).unwrap();
    }

    /// `memlb reload` adds a peer that does not answer, gives the other one an address without a manager, and takes
    /// both back with another key. What begins meanwhile is sent when both speak again.
    pub fn changes_its_peers(&mut self) {
        const STRANGER: &str = "\n[[peer]]\nname = \"manager3\"\naddress = \"192.0.2.3:9997\"\n";
        let key = self.pair.paths.directory.join("new.key");
        let mut keygen = Command::new(&self.pair.binary);
        output(keygen.args(["keygen", "--peer", "--output"]).arg(&key)).unwrap();
        let states = |status: &Value| {
            let peers = status["peers"].as_array().into_iter().flatten();
            let words = peers.map(|it| format!("{} {}", it["name"], it["state"]).replace('"', ""));
            words.collect::<Vec<_>>().join(", ")
        };
        let manager = &self.pair.managers[0];
        let other = self.pair.managers[1].peer_address().to_string();
        let nowhere = "192.0.2.2:9997";
        let changes = reload(manager, |text| {
            format!(
                "{}{STRANGER}key = {:?}\n",
                text.replace(&other, nowhere),
                key
            )
        });
        for change in [
            "peer manager3 added at 192.0.2.3:9997".to_owned(),
            format!("peer manager2.address: {other} -> {nowhere}"),
        ] {
            assert!(changes.contains(&change), "{changes}");
        }
        let alone = "manager2 connecting, manager3 connecting";
        manager
            .wait_for_status(SOON, alone, |status| states(status) == alone)
            .unwrap();
        for manager in &self.pair.managers {
            let changes = reload(manager, |text| {
                let peers = text.split(STRANGER).next().unwrap_or(text);
                let peers = peers.replace(nowhere, &other);
                peers.replace("peer.key", "new.key")
            });
            assert!(changes.contains("new sessions with manager"), "{changes}");
        }
        self.pair.wait_until_complete(SOON).unwrap();
        assert_eq!(
            states(&self.pair.managers[0].status().unwrap()),
            "manager2 connected"
        );
        self.hands_over_once();
    }

    fn two_are_active(&self) {
        // The addresses of a killed keepalived stay, and the other machine takes them, too.
        let both = || self.pair.active().len() == 2;
        eventually(SOON, "two active machines", both);
    }

    pub fn recovers_from_two_active_machines(&mut self) {
        self.block_adverts(true);
        self.two_are_active();
        thread::sleep(SILENCE);
        self.block_adverts(false);
        self.active();
        self.pair.wait_until_complete(SOON).unwrap();
    }

    pub fn block_adverts(&self, block: bool) {
        const RULES: &str = "table inet deaf { chain input { \
            type filter hook input priority 0; ip protocol vrrp drop; }; }";
        for manager in &self.pair.network.managers {
            let rules = match block {
                true => RULES,
                false => "delete table inet deaf",
            };
            manager.run("nft", &[rules]).unwrap();
        }
    }

    /// What differs between layouts is that no map of before can be used.
    pub fn is_upgraded_to_another_layout(&mut self) {
        for _ in 0..2 {
            let waiting = self.waiting();
            let manager = self.manager(waiting);
            manager.kill_controller().unwrap();
            output(&mut manager.memlb("unload")).unwrap();
            manager.start_controller().unwrap();
            // Waits for connections and workers.
            self.hands_over_once();
        }
    }

    pub fn waits_for_a_peer_that_reads_nothing(&mut self) {
        let (active, waiting) = (self.active(), self.waiting());
        let signal = |testbed: &mut Self, signal| {
            let controller = testbed.manager(waiting).controller.as_mut().unwrap();
            controller.signal(signal).unwrap();
        };
        let before = self.pair.managers[active].resident_kb().unwrap();
        let turnover = Turnover::start(&self.pair.network.client, BUSY).unwrap();
        signal(self, Signal::SIGSTOP);
        let begun = Instant::now();
        let mut most = before;
        while begun.elapsed() < SILENCE {
            most = most.max(self.pair.managers[active].resident_kb().unwrap());
            thread::sleep(Duration::from_millis(200));
        }
        signal(self, Signal::SIGCONT);
        let resumed = Instant::now();
        self.pair.wait_until_complete(2 * SOON).unwrap();
        let complete = resumed.elapsed();
        // What was established meanwhile is known there, too.
        self.hands_over_once();
        let report = turnover.finish().unwrap();
        println!(
            "a peer read nothing: {} of {} connections lost, {before} kB before, at most {most} kB; complete after {complete:?}",
            report.failures().len(),
            report.0.len()
        );
        report.assert_no_failure();
        self.keeps_idle_connections();
        assert!(most <= before + MEMORY_KB, "{before} kB, then {most} kB");
    }

    pub fn reports_no_half_open_connection(&mut self, syns: u32) {
        let active = self.active();
        let sent = |testbed: &Self| testbed.peer_figure(active, "records_sent");
        let before = sent(self);
        let begun = Instant::now();
        let server = SocketAddrV4::new(SERVICE_ADDRESS, WEB_PORT);
        let client = &self.pair.network.client;
        syn::flood(client, server, 0..syns, FLOOD_PER_SECOND).unwrap();
        let took = begun.elapsed();
        let sent = sent(self) - before;
        println!("{syns} SYNs in {took:.1?}: {sent} records sent");
        // Sweeps may come in between, which name the open connections.
        assert!(sent <= 4 * self.idle.count() as u64, "{sent}");
        self.keeps_idle_connections();
    }
}

/// Changes a manager's file, and returns what `memlb reload` prints.
fn reload(manager: &Manager, change: impl FnOnce(&str) -> String) -> String {
    let file = manager.paths.directory.join("memlb.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, change(&text)).unwrap();
    output(&mut manager.memlb("reload")).unwrap()
}
