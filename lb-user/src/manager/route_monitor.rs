//! Watches the routes to the workers in a task of its own, because the kernel's answers may take time and must not
//! delay heartbeats.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::background::BackgroundResult;
use crate::datapath::{Links, Neighbour, Netlink, NetlinkChange, Routes};

/// How often the routes are looked up if the kernel reports no change.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long the task waits for the rest of a burst of changes.
const BURST: Duration = Duration::from_millis(50);

/// How long the kernel may take to answer the monitor.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long the kernel may take to return the routes to new workers.
const NEW_ROUTES_TIMEOUT: Duration = Duration::from_millis(200);

/// The background task. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct RouteMonitor {
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    _task: JoinSet<()>,
}

impl RouteMonitor {
    pub fn start(
        netlink: Netlink,
        addresses: BTreeSet<IpAddr>,
        results: mpsc::Sender<BackgroundResult>,
    ) -> Self {
        let (addresses, watched) = watch::channel(addresses);
        let mut task = JoinSet::new();
        task.spawn(run(Some(netlink), watched, results));
        Self {
            addresses,
            _task: task,
        }
    }

    /// Replaces the addresses whose routes are watched.
    pub fn set_addresses(&self, addresses: BTreeSet<IpAddr>) {
        self.addresses.send_replace(addresses);
    }
}

/// Looks up the routes to workers that are not in force yet. If the kernel does not answer, it returns none, and the
/// monitor looks them up later.
pub(super) async fn look_up_routes(addresses: &BTreeSet<IpAddr>) -> Routes {
    let found = routes(&mut None, addresses, NEW_ROUTES_TIMEOUT).await;
    match found {
        Ok((routes, _)) => routes,
        Err(error) => {
            warn!("{error:#}; the routes to new workers are looked up later");
            Routes::new()
        }
    }
}

async fn run(
    mut netlink: Option<Netlink>,
    mut addresses: watch::Receiver<BTreeSet<IpAddr>>,
    results: mpsc::Sender<BackgroundResult>,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    let mut next_hops = NextHops::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            change = change(&mut netlink) => match change {
                NetlinkChange::Tables => sleep(BURST).await,
                NetlinkChange::Neighbour(neighbour) => {
                    let address = neighbour.address;
                    let moved = BackgroundResult::NextHopMoved(address);
                    if next_hops.has_moved(neighbour) && results.send(moved).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
            changed = addresses.changed() => if changed.is_err() { return },
        }
        let watched = addresses.borrow_and_update().clone();
        match routes(&mut netlink, &watched, TIMEOUT).await {
            Ok((routes, links)) => {
                if failing {
                    info!("the kernel answers route requests again");
                }
                failing = false;
                let unaware = next_hops.update(&routes, &links);
                request_neighbours(&mut netlink, unaware).await;
                if results
                    .send(BackgroundResult::Routes(routes))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                if !failing {
                    warn!(
                        "{error:#}; the last known routes to the workers stay; trying again every {} s",
                        INTERVAL.as_secs()
                    );
                }
                failing = true;
                netlink = None;
            }
        }
    }
}

/// Waits for the kernel to report a change. Reports may be lost when the connection breaks.
async fn change(netlink: &mut Option<Netlink>) -> NetlinkChange {
    let change = match netlink {
        Some(netlink) => netlink.next_change().await,
        None => std::future::pending().await,
    };
    change.unwrap_or_else(|| {
        *netlink = None;
        NetlinkChange::Tables
    })
}

/// Requests the link addresses of next hops. Otherwise a worker sends its heartbeats to this machine's former link
/// address until its kernel doubts it, which takes half a minute.
async fn request_neighbours(netlink: &mut Option<Netlink>, next_hops: Vec<(u32, IpAddr)>) {
    let Some(netlink) = netlink else { return };
    for (interface, address) in next_hops {
        let request = netlink.request_neighbour(interface, address);
        if let Ok(Err(error)) = timeout(TIMEOUT, request).await {
            debug!("{error:#}");
        }
    }
}

/// A next hop, as last reported.
#[derive(Debug, Default)]
struct NextHop {
    link_address: Vec<u8>,
    /// The link address of this machine's interface.
    own_link_address: Vec<u8>,
}

/// The next hops towards the workers, by interface and address.
#[derive(Debug, Default)]
struct NextHops(BTreeMap<(u32, IpAddr), NextHop>);

impl NextHops {
    /// Returns the next hops to which this machine's link address may be new.
    fn update(&mut self, routes: &Routes, links: &Links) -> Vec<(u32, IpAddr)> {
        let hops = routes.values().flatten().filter(|it| !it.is_local);
        let hops: BTreeSet<_> = hops.map(|it| (it.interface, it.next_hop)).collect();
        self.0.retain(|hop, _| hops.contains(hop));
        let mut unaware = Vec::new();
        for hop in hops {
            let own = links.link_address(hop.0).unwrap_or_default();
            let known = self.0.entry(hop).or_default();
            if known.own_link_address != own {
                own.clone_into(&mut known.own_link_address);
                unaware.push(hop);
            }
        }
        unaware
    }

    /// Whether it is a next hop whose link address differs from the last report.
    fn has_moved(&mut self, neighbour: Neighbour) -> bool {
        let Neighbour {
            interface,
            address,
            link_address,
        } = neighbour;
        let Some(known) = self.0.get_mut(&(interface, address)) else {
            return false;
        };
        std::mem::replace(&mut known.link_address, link_address.clone()) != link_address
    }
}

async fn routes(
    netlink: &mut Option<Netlink>,
    addresses: &BTreeSet<IpAddr>,
    limit: Duration,
) -> Result<(Routes, Links)> {
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::connect()?),
    };
    timeout(limit, netlink.routes_and_links(addresses))
        .await
        .context("the kernel does not answer route requests")?
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
            lower_interfaces: BTreeSet::new(),
            next_hop: worker,
            source: IpAddr::from([192, 0, 2, 1]),
            is_local: false,
        };
        let mut next_hops = NextHops::default();
        let unaware = next_hops.update(&[(worker, Some(route))].into(), &Links::default());
        assert!(unaware.is_empty(), "the interface is gone: {unaware:?}");
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
    async fn reconnects_when_the_connection_breaks() {
        let loopback = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
        let mut broken = Netlink::connect().unwrap();
        broken.sever();
        let addresses = BTreeSet::from([loopback]);
        assert!(broken.routes(&addresses).await.is_err());
        let (results, mut received) = mpsc::channel(4);
        let route_monitor = RouteMonitor::start(broken, addresses, results);
        let Some(BackgroundResult::Routes(routes)) = received.recv().await else {
            panic!("no routes");
        };
        assert!(
            routes[&loopback]
                .as_ref()
                .is_some_and(|route| route.is_local)
        );
        route_monitor.set_addresses(BTreeSet::new());
        loop {
            match received.recv().await {
                Some(BackgroundResult::Routes(routes)) if routes.is_empty() => return,
                Some(_) => {}
                None => panic!("it has ended"),
            }
        }
    }
}
