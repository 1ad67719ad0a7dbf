//! Looks at the ways to the workers in a task of its own: whatever the kernel's tables do or do not
//! answer, heartbeats are not kept waiting.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use super::Instruction;
use crate::datapath::{Netlink, Routes};

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
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = change(&mut netlink) => sleep(BURST).await,
            changed = wanted.changed() => if changed.is_err() { return },
        }
        let addresses = wanted.borrow_and_update().clone();
        match look(&mut netlink, &addresses).await {
            Ok(routes) => {
                if failing {
                    info!("the kernel answers again about routes");
                }
                failing = false;
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

/// Waits for the kernel to tell of a change of links, addresses or routes.
async fn change(netlink: &mut Option<Netlink>) {
    let over = match netlink {
        Some(netlink) => netlink.change().await.is_none(),
        None => std::future::pending().await,
    };
    if over {
        *netlink = None;
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
