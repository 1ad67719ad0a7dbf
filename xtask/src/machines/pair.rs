//! The demo of a pair of managers under systemd and keepalived: a handover, a crash of the active manager, and its
//! reboot.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use memlb_tests::{Namespace, Probe, client::Connection};
use serde_json::Value;

use super::{
    image::Image,
    node::{LAB, MANAGER2, Node},
};
use crate::interrupt::Interrupt;

const MANAGERS: [&Node; 2] = [&LAB[0], MANAGER2];
/// The service's address in pair.sh.
const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 100);
/// Connections that stay open during the whole demo.
const HELD: usize = 20;
const EVERY: Duration = Duration::from_millis(200);
/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(10 * 60);
/// Interval of commands, because each takes the machines' processor time.
const PACE: Duration = Duration::from_secs(1);

/// A command on one of the managers, and its effect.
struct ManagerStep {
    what: &'static str,
    on: Target,
    command: &'static str,
    effect: StepEffect,
}

/// The manager that executes a command.
enum Target {
    Active,
    Backup,
}

/// Whether the addresses move to the other manager.
#[derive(PartialEq, Eq)]
enum StepEffect {
    Moves,
    Stays,
}

macro_rules! steps {
    ($($what:literal, $on:ident, $command:literal, $effect:ident;)+) => {
        &[$(ManagerStep { what: $what, on: Target::$on, command: $command, effect: StepEffect::$effect }),+]
    };
}

const STEPS: &[ManagerStep] = steps! {
    "memlb handover on the active manager", Active, "sudo memlb handover", Moves;
    "memlb handover --undo there", Backup, "sudo memlb handover --undo", Stays;
    "systemctl kill memlb-manager on the active one", Active,
        "sudo systemctl kill --signal=KILL memlb-manager", Stays;
    // Without writing files back or ending connections.
    "the active manager crashes", Active,
        "sudo sh -c '(sleep 1; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &'", Moves;
    "it has booted and has all connections", Backup, "true", Stays;
};

/// Runs all steps.
pub fn run(image: &Image, network: &Namespace, interrupt: &Interrupt) -> Result<()> {
    let complete = || {
        let mut managers = MANAGERS.iter();
        managers.try_for_each(|node| wait_until_complete(image, node, interrupt))
    };
    complete()?;
    let mut active = active(image)?;
    let mut held = Held::open(network)?;
    println!(
        "{} has {SERVICE}; {HELD} connections stay open",
        MANAGERS[active].name
    );
    for step in STEPS {
        let node = MANAGERS[match step.on {
            Target::Active => active,
            Target::Backup => 1 - active,
        }];
        let probe = Probe::start(network, service(), EVERY, PATIENCE)?;
        thread::sleep(PACE);
        let started = Instant::now();
        // A booting machine refuses SSH at first.
        wait_for_success(step.what, interrupt, || node.run(image, step.command))?;
        if step.effect == StepEffect::Moves {
            active = 1 - active;
            wait_for_success("the addresses to move", interrupt, || {
                let has = has_address(image, MANAGERS[active])?;
                ensure!(has, "{} does not have {SERVICE}", MANAGERS[active].name);
                Ok(())
            })?;
        } else {
            complete()?;
        }
        let took = started.elapsed();
        thread::sleep(PACE);
        probe.wait_for_answers(Instant::now(), DEADLINE)?;
        let report = probe.stop()?.since(started);
        let (requests, failed) = (report.requests.len(), report.failures().count());
        let lost = held.check();
        println!(
            "{:<48}{:<9} after {:>6.1} s; longest gap {:>5} ms; new: {failed} of {requests} failed; open: {lost} of {HELD} lost",
            step.what,
            MANAGERS[active].name,
            took.as_secs_f64(),
            report.longest_outage().as_millis(),
        );
        ensure!(lost == 0, "open connections were lost");
    }
    for node in MANAGERS {
        println!("{}:\n{}", node.name, node.run(image, "sudo memlb status")?);
    }
    Ok(())
}

fn service() -> SocketAddr {
    (SERVICE, 80).into()
}

/// Connections that are idle between two checks.
struct Held(Vec<Connection>);

impl Held {
    fn open(network: &Namespace) -> Result<Self> {
        let open = |_| Connection::open(network, service(), PATIENCE);
        let mut held = Self((0..HELD).map(open).collect::<Result<_>>()?);
        ensure!(held.check() == 0, "a new connection was not answered");
        Ok(held)
    }

    /// Sends a request on every connection, and returns how many failed. Those are dropped.
    fn check(&mut self) -> usize {
        let before = self.0.len();
        self.0.retain_mut(|it| it.get("/").is_ok());
        before - self.0.len()
    }
}

/// Returns the index of the manager that has the service's address.
fn active(image: &Image) -> Result<usize> {
    let owners = MANAGERS.iter().map(|node| has_address(image, node));
    match owners.collect::<Result<Vec<_>>>()?[..] {
        [true, false] => Ok(0),
        [false, true] => Ok(1),
        _ => bail!("not exactly one manager has {SERVICE}"),
    }
}

fn has_address(image: &Image, node: &Node) -> Result<bool> {
    let addresses = node.run(image, "ip -brief address show eth1")?;
    Ok(addresses.contains(&format!("{SERVICE}/")))
}

/// Waits until a manager's workers are up, and it and its peer have the same connections.
fn wait_until_complete(image: &Image, node: &Node, interrupt: &Interrupt) -> Result<()> {
    wait_for_success("the pair to be complete", interrupt, || {
        let status: Value = serde_json::from_str(&node.run(image, "sudo memlb status --json")?)?;
        let peer = &status["peers"][0];
        let is_complete = peer["state"] == "connected"
            && peer["complete"] == true
            && peer["received_complete"] == true;
        let backends = status["services"][0]["backends"].as_array();
        let are_up = backends.is_some_and(|all| all.iter().all(|it| it["state"] == "up"));
        ensure!(is_complete && are_up, "{}: {status:#}", node.name);
        Ok(())
    })
}

/// Repeats `attempt` until it succeeds. Returns its last error after [`DEADLINE`].
fn wait_for_success<T>(
    what: &str,
    interrupt: &Interrupt,
    attempt: impl Fn() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        interrupt.check()?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("wait for {what}"));
            }
            Err(_) => thread::sleep(PACE),
        }
    }
}
