//! Looks at the ways to the workers in a task of its own: whatever the kernel's tables do or do not
//! answer, heartbeats are not kept waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use super::Instruction;
use crate::datapath::{Change, Neighbour, Netlink, Routes};

/// How often the ways are looked up although the kernel has told of no change.
const INTERVAL: Duration = Duration::from_secs(2);

/// Changes come in bursts; so long is waited for the rest of one.
const BURST: Duration = Duration::from_millis(50);

/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ended when dropped.
#[derive(Debug)]
pub(super) struct Surveyor {
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    task: JoinHandle<()>,
}

impl Surveyor {
    pub fn start(
        netlink: Netlink,
        addresses: BTreeSet<IpAddr>,
        instructions: mpsc::Sender<Instruction>,
    ) -> Self {
        let (addresses, wanted) = watch::channel(addresses);
        Self {
            addresses,
            task: tokio::spawn(survey(Some(netlink), wanted, instructions)),
        }
    }

    /// Has the ways to these addresses looked up, from now on.
    pub fn look_at(&self, addresses: BTreeSet<IpAddr>) {
        self.addresses.send_replace(addresses);
    }
}

impl Drop for Surveyor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn survey(
    mut netlink: Option<Netlink>,
    mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
    instructions: mpsc::Sender<Instruction>,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    let mut next_hops = NextHops::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            change = change(&mut netlink) => match change {
                Change::Tables => sleep(BURST).await,
                Change::Neighbour(neighbour) => {
                    let address = neighbour.address;
                    let moved = Instruction::NextHopMoved(address);
                    if next_hops.has_moved(neighbour) && instructions.send(moved).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
            changed = wanted.changed() => if changed.is_err() { return },
        }
        let addresses = wanted.borrow_and_update().clone();
        match look(&mut netlink, &addresses).await {
            Ok(routes) => {
                if failing {
                    info!("the kernel answers again about routes");
                }
                failing = false;
                next_hops.follow(&routes);
                if instructions
                    .send(Instruction::Routes(routes))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                if !failing {
                    warn!(
                        "{error:#}; the ways to the workers stay as they were last known, trying \
                         again every {} s",
                        INTERVAL.as_secs()
                    );
                }
                failing = true;
                netlink = None;
            }
        }
    }
}

/// Waits for the kernel to report a change. What it reported before a connection broke may be lost.
async fn change(netlink: &mut Option<Netlink>) -> Change {
    let change = match netlink {
        Some(netlink) => netlink.change().await,
        None => std::future::pending().await,
    };
    change.unwrap_or_else(|| {
        *netlink = None;
        Change::Tables
    })
}

/// The next hops towards the workers, by interface and address, with their link addresses as last reported.
#[derive(Debug, Default)]
struct NextHops(BTreeMap<(u32, IpAddr), Vec<u8>>);

impl NextHops {
    fn follow(&mut self, routes: &Routes) {
        let hops = routes.values().flatten();
        let hops: BTreeSet<_> = hops.map(|it| (it.interface, it.next_hop)).collect();
        self.0.retain(|hop, _| hops.contains(hop));
        for hop in hops {
            self.0.entry(hop).or_default();
        }
    }

    /// Whether it is a next hop, at another link address than was reported last.
    fn has_moved(&mut self, neighbour: Neighbour) -> bool {
        let Neighbour {
            interface,
            address,
            link_address,
        } = neighbour;
        let Some(known) = self.0.get_mut(&(interface, address)) else {
            return false;
        };
        std::mem::replace(known, link_address.clone()) != link_address
    }
}

async fn look(netlink: &mut Option<Netlink>, addresses: &BTreeSet<IpAddr>) -> Result<Routes> {
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::connect()?),
    };
    timeout(PATIENCE, netlink.routes(addresses))
        .await
        .context("the kernel does not answer about routes")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Route;

    #[test]
    fn only_a_next_hop_with_another_link_address_has_moved() {
        let worker = IpAddr::from([192, 0, 2, 3]);
        let route = Route {
            interface: 2,
            beneath: BTreeSet::new(),
            next_hop: worker,
            source: IpAddr::from([192, 0, 2, 1]),
            is_local: false,
        };
        let mut next_hops = NextHops::default();
        next_hops.follow(&[(worker, Some(route))].into());
        let mut reports = |interface, address: IpAddr, last| {
            next_hops.has_moved(Neighbour {
                interface,
                address,
                link_address: vec![2, 0, 0, 0, 0, last],
            })
        };
        assert!(reports(2, worker, 1));
        assert!(!reports(2, worker, 1));
        assert!(!reports(3, worker, 2));
        assert!(!reports(2, [192, 0, 2, 4].into(), 2));
        assert!(reports(2, worker, 2));
    }

    #[tokio::test]
    async fn connects_anew_when_the_connection_breaks() {
        let loopback = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
        let mut broken = Netlink::connect().unwrap();
        broken.sever();
        let addresses = BTreeSet::from([loopback]);
        assert!(broken.routes(&addresses).await.is_err());
        let (instructions, mut told) = mpsc::channel(4);
        let surveyor = Surveyor::start(broken, addresses, instructions);
        let Some(Instruction::Routes(routes)) = told.recv().await else {
            panic!("no routes");
        };
        assert!(
            routes[&loopback]
                .as_ref()
                .is_some_and(|route| route.is_local)
        );
        surveyor.look_at(BTreeSet::new());
        loop {
            match told.recv().await {
                Some(Instruction::Routes(routes)) if routes.is_empty() => return,
                Some(_) => {}
                None => panic!("it has ended"),
            }
        }
    }
}
