//! Resolves a manager's name in a task of its own, so that a slow name server delays no heartbeat.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::timeout,
};
use tracing::{info, warn};

/// How long after a successful lookup a name is resolved again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// How long after a failed lookup a name is resolved again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The timeout of a lookup, longer than that of any resolver.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The last address of a manager's name.
#[derive(Debug)]
pub(super) struct Resolver {
    address: watch::Receiver<Option<SocketAddr>>,
    refresh: Arc<Notify>,
}

impl Resolver {
    /// Starts to resolve a name with a port. An address in place of the name is not resolved.
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

    /// Returns the last address, also while lookups fail.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.borrow()
    }

    /// Waits for another address; forever if the name is an address itself.
    pub async fn changed(&mut self) {
        if self.address.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves the name again now.
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
                    info!("{name} resolves to {address}");
                }
                REFRESH_INTERVAL
            }
            Err(error) => {
                if !failing {
                    warn!("{name} cannot be resolved, trying again: {error:#}");
                }
                failing = true;
                RETRY_INTERVAL
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = refresh.notified() => {}
        }
    }
}

async fn look_up(name: &str) -> Result<SocketAddr> {
    let found: Vec<SocketAddr> = timeout(TIMEOUT, lookup_host(name))
        .await
        .context("no answer to the lookup of its name")?
        .context("look up its name")?
        .collect();
    preferred_address(&found).context("its name has no address")
}

/// Returns the address of a name to which the agent sends.
pub fn preferred_address(found: &[SocketAddr]) -> Option<SocketAddr> {
    // A manager listens on IPv4 by default.
    let ipv4 = found.iter().find(|address| address.is_ipv4());
    ipv4.or(found.first()).copied()
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
