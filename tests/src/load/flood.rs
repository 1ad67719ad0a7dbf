//! SYNs of clients that do not exist, while clients a round trip away connect.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    Tally,
    distant::{DISTANT_NETWORK, Distant, FIRST_PORT, client_address},
    prepare_servers, route,
};
use crate::{
    namespace::Namespace,
    syn::{anywhere, flood_from},
    topology::{Node, Topology},
};

/// Where the SYNs pretend to come from, unless they are aimed at the clients' own addresses.
const FLOOD_NETWORK: &str = "10.0.0.0/8";
const ATTACKER: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 66);
/// How long the flood lasts before clients connect.
const LEAD: Duration = Duration::from_secs(1);
/// A flood notices so many times a second that it is over.
const LOOKS: u32 = 10;

/// A flood of SYNs, and the clients that connect meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Flood<'a> {
    pub server: SocketAddrV4,
    pub syns_per_second: u32,
    /// Whether the SYNs come from the clients' own addresses, instead of another address each.
    pub is_aimed: bool,
    pub clients_per_second: u32,
    pub duration: Duration,
    pub round_trip: Duration,
    /// Set by someone who wants this to end early.
    pub stop: &'a AtomicBool,
}

/// Adds an attacker to the clients' network, and makes the addresses that it and the clients use lead back
/// to them.
///
/// # Errors
/// When a namespace, a route or a setting is refused.
pub fn prepare_flood(topology: &Topology) -> Result<Node> {
    prepare_servers(topology)?;
    route(topology, DISTANT_NETWORK, topology.client.address())?;
    let client = topology.client.name();
    let prefix = client.strip_suffix("client").unwrap_or(client);
    let attacker = Namespace::create(format!("{prefix}attacker"))?;
    let attacker = topology.join(attacker, ATTACKER, "attacker")?;
    route(topology, FLOOD_NETWORK, attacker.address())?;
    Ok(attacker)
}

impl Flood<'_> {
    /// Floods, lets clients connect, and returns what became of them and how many SYNs a second were sent.
    ///
    /// # Errors
    /// When it is interrupted, or a packet cannot be sent.
    pub fn run(&self, client: &Namespace, attacker: &Namespace) -> Result<(Tally, f64)> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let flooding = scope.spawn(|| self.flood(attacker, &is_over));
            let connected = client.enter(|| {
                let distant = Distant::new(self.server, self.round_trip, self.stop)?;
                thread::sleep(LEAD);
                distant.connect(self.clients_per_second, self.duration)
            });
            is_over.store(true, Ordering::Relaxed);
            let rate = flooding.join().map_err(|_| anyhow!("the flood panicked"))?;
            Ok((connected??, rate.context("flood")?))
        })
    }

    fn flood(&self, attacker: &Namespace, is_over: &AtomicBool) -> Result<f64> {
        let clients = self.duration.as_secs_f64() * f64::from(self.clients_per_second);
        let clients = (clients as u32).max(1);
        let source = |number: u32| match self.is_aimed {
            // Below the ports that the clients use themselves.
            true => {
                let victim = client_address((number % clients) as usize);
                let port = 1 + number / clients % u32::from(FIRST_PORT - 1);
                SocketAddrV4::new(*victim.ip(), port as u16)
            }
            false => anywhere(number),
        };
        let begun = Instant::now();
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            let next = sent + self.syns_per_second.div_ceil(LOOKS);
            flood_from(
                attacker,
                self.server,
                sent..next,
                self.syns_per_second,
                source,
            )?;
            sent = next;
        }
        Ok(f64::from(sent) / begun.elapsed().as_secs_f64())
    }
}
