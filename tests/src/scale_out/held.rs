//! Connections that a client holds, and asks on now and then.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::{client::Connection, namespace::Namespace};

const THREADS: usize = 8;

/// Open connections, each with the time of its establishment.
#[derive(Debug)]
pub struct Held {
    connections: Vec<(Instant, Connection)>,
}

/// What became of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldOutcome {
    pub requested: usize,
    pub lost: usize,
}

impl Held {
    /// Opens so many connections to `service` from `client`; a request on one fails after `patience`.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(
        client: &Namespace,
        service: SocketAddr,
        count: usize,
        patience: Duration,
    ) -> Result<Self> {
        let open = || -> io::Result<Vec<_>> {
            let open_one = |_| {
                let mut connection = Connection::open_here(service, patience)?;
                connection.get("/")?;
                Ok((Instant::now(), connection))
            };
            (0..count).map(open_one).collect()
        };
        Ok(Self {
            connections: client.enter(open)??,
        })
    }

    /// Requests a page on every connection. Lost ones are dropped.
    ///
    /// # Errors
    /// When a client's thread panics.
    pub fn request_pages(&mut self) -> Result<HeldOutcome> {
        let requested = self.connections.len();
        let mut rest = std::mem::take(&mut self.connections);
        let mut parts = Vec::new();
        let size = requested.div_ceil(THREADS).max(1);
        while !rest.is_empty() {
            parts.push(rest.split_off(rest.len().saturating_sub(size)));
        }
        let answer = |mut part: Vec<(Instant, Connection)>| {
            part.retain_mut(|(_, connection)| {
                connection.get("/").is_ok_and(|answer| answer.status == 200)
            });
            part
        };
        let kept = thread::scope(|scope| {
            let threads: Vec<_> = parts
                .into_iter()
                .map(|part| scope.spawn(move || answer(part)))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Result<Vec<_>, _>>()
        });
        let kept = kept.map_err(|_| anyhow!("a client panicked"))?;
        self.connections = kept.into_iter().flatten().collect();
        Ok(HeldOutcome {
            requested,
            lost: requested - self.connections.len(),
        })
    }
}
