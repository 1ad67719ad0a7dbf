//! The hosts between which a worker moves.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::application::{Application, Frozen};
use crate::{namespace::Namespace, topology::Topology};

/// The new host's address until the worker comes with its own.
const NEW_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 200);

/// Puts a host for the first worker into the network, behind the workers there are, with a link address of its own.
///
/// # Errors
/// When the namespace or its link cannot be made.
pub fn add_host(topology: &mut Topology, prefix: &str) -> Result<()> {
    let namespace = Namespace::create(format!("{prefix}host"))?;
    let host = topology.join(namespace, NEW_HOST, "host")?;
    topology.workers.push(host);
    Ok(())
}

/// What a move costs, as the hosts see it.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// From when the worker stopped until it went on.
    pub pause: Duration,
    pub connections: usize,
    pub bytes: usize,
}

/// An application on its way from the old host to the new one.
#[derive(Debug)]
pub struct Departed {
    application: Frozen,
    at: Instant,
}

/// Stops the first worker's application and moves its address to the host of [`add_host`], which becomes the first
/// worker. The new host stays off the network until [`arrive`].
///
/// # Errors
/// When a connection cannot be taken, or the address cannot be moved.
pub fn depart(topology: &mut Topology, application: Application) -> Result<Departed> {
    let at = Instant::now();
    let [old, .., new] = topology.workers.as_mut_slice() else {
        bail!("there is no second host");
    };
    let address = old.address();
    // From here on, no packet reaches the connections: the old host would answer by RST.
    old.drop_address()?;
    let application = application.freeze().context("freeze the application")?;
    new.block()?;
    new.replace_address(address)?;
    let last = topology.workers.len() - 1;
    topology.workers.swap(0, last);
    Ok(Departed { application, at })
}

/// Starts the application on the first worker, not before it has stood still for `pause`.
///
/// # Errors
/// When a connection cannot be restored.
pub fn arrive(
    topology: &Topology,
    departed: Departed,
    pause: Duration,
) -> Result<(Application, Moved)> {
    let Departed { application, at } = departed;
    let (connections, bytes) = (application.connections(), application.bytes());
    thread::sleep(pause.saturating_sub(at.elapsed()));
    let host = topology.workers.first().context("there is a worker")?;
    let application = application.thaw(host).context("thaw the application")?;
    host.unblock()?;
    let moved = Moved {
        pause: at.elapsed(),
        connections,
        bytes,
    };
    Ok((application, moved))
}
