//! Resolves a manager's name in a task of its own: a slow name server delays no heartbeat.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::timeout,
};
use tracing::{info, warn};

/// How often a name is looked up again, after it was found and after it was not.
const AGAIN: Duration = Duration::from_secs(30);
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Longer than any resolver tries by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A manager's address as last found.
#[derive(Debug)]
pub(super) struct Resolver {
    address: watch::Receiver<Option<SocketAddr>>,
    refresh: Arc<Notify>,
}

impl Resolver {
    /// Takes an address as it is, and begins to look up a name. `name` has a port.
    pub fn start(name: &str) -> Self {
        let literal = name.parse().ok();
        let (found, address) = watch::channel(literal);
        let refresh = Arc::new(Notify::new());
        if literal.is_none() {
            tokio::spawn(resolve_forever(
                name.to_owned(),
                found,
                Arc::clone(&refresh),
            ));
        }
        Self { address, refresh }
    }

    /// Returns the address last found; an old one is better than none.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.borrow()
    }

    /// Waits for another address; for ever if the name is an address itself.
    pub async fn changed(&mut self) {
        if self.address.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Looks up now: the world may have changed.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }
}

async fn resolve_forever(
    name: String,
    found: watch::Sender<Option<SocketAddr>>,
    refresh: Arc<Notify>,
) {
    let mut failing = false;
    while !found.is_closed() {
        let wait = match look_up(&name).await {
            Ok(address) => {
                failing = false;
                let new = found.send_if_modified(|known| known.replace(address) != Some(address));
                if new {
                    info!("{name} is {address}");
                }
                AGAIN
            }
            Err(error) => {
                if !failing {
                    warn!("{name} is not found, trying on: {error:#}");
                }
                failing = true;
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = refresh.notified() => {}
        }
    }
}

async fn look_up(name: &str) -> Result<SocketAddr> {
    let found: Vec<SocketAddr> = timeout(PATIENCE, lookup_host(name))
        .await
        .context("no answer to the lookup of its name")?
        .context("look up its name")?
        .collect();
    // A manager listens at IPv4 addresses by default.
    let usual = found.iter().find(|address| address.is_ipv4());
    let address = usual.or(found.first());
    address.copied().context("its name has no address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepts_addresses_and_resolves_names() {
        let literal = Resolver::start("192.168.56.101:9999");
        assert_eq!(literal.address(), Some(([192, 168, 56, 101], 9999).into()));
        let literal = Resolver::start("[2001:db8::1]:9999");
        assert_eq!(literal.address().unwrap().to_string(), "[2001:db8::1]:9999");
        let mut named = Resolver::start("localhost:9999");
        named.changed().await;
        assert_eq!(named.address(), Some(([127, 0, 0, 1], 9999).into()));
        named.refresh();
        assert!(look_up("no-such-host.invalid:9999").await.is_err());
    }
}
