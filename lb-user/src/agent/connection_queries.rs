//! Replies to the connection queries of managers.

use std::{collections::BTreeMap, fmt, time::Duration};

use lb_core::Sequence;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::{
    datapath::dsr::DsrTranslator,
    heartbeat::{ConnectionQuery, ConnectionReply, Refusal},
    keys::Key,
    token_bucket::TokenBucket,
};

/// The most clients a second about which the agent replies: twice those of one manager.
const CLIENTS_PER_SECOND: u32 = 4_000;

/// A query must name one of this many last heartbeats.
const LAST_HEARTBEATS: u64 = 128;

/// The least time between two log lines about refused queries.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// Replies to connection queries, limits their rate, and counts the refused ones.
#[derive(Debug)]
pub(super) struct ConnectionQueries {
    limit: TokenBucket,
    /// By reason.
    refused: BTreeMap<&'static str, u64>,
    logged: Option<Instant>,
}

impl ConnectionQueries {
    pub fn new(now: Instant) -> Self {
        Self {
            limit: TokenBucket::new(CLIENTS_PER_SECOND, now.into_std()),
            refused: BTreeMap::new(),
            logged: None,
        }
    }

    /// Returns the reply to a query; `None` if the query is refused. `sent` is the agent's last heartbeat.
    pub fn reply_to(
        &mut self,
        query: &ConnectionQuery,
        sent: Sequence,
        dsr: &DsrTranslator,
        key: Option<&Key>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let reply = self.check(query, sent, now).and_then(|()| {
            let reply = ConnectionReply {
                nonce: query.nonce,
                known_clients: dsr.own_connections(query.service, &query.clients),
            };
            debug!(
                "{} of {} clients have connections here",
                reply.known_clients.count_ones(),
                query.clients.len()
            );
            reply.encode(key)
        });
        match reply {
            Ok(datagram) => Some(datagram),
            Err(refusal) => {
                self.refuse(refusal.name(), &refusal, now);
                None
            }
        }
    }

    /// Refuses a query that is old or above the rate limit.
    fn check(
        &mut self,
        query: &ConnectionQuery,
        sent: Sequence,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Sequence { boot, number } = query.heartbeat;
        let ago = sent.number.checked_sub(number);
        if boot != sent.boot || ago.is_none_or(|ago| ago >= LAST_HEARTBEATS) {
            return Err(Refusal::OldQuery);
        }
        let clients = u32::try_from(query.clients.len()).unwrap_or(u32::MAX);
        if self.limit.try_acquire(clients, now.into_std()) {
            Ok(())
        } else {
            Err(Refusal::RateLimited)
        }
    }

    /// Counts a refused query, and logs the counts from time to time.
    pub fn refuse(&mut self, reason: &'static str, detail: &dyn fmt::Display, now: Instant) {
        *self.refused.entry(reason).or_default() += 1;
        let is_due = |at| now.saturating_duration_since(at) >= REFUSAL_INTERVAL;
        if !self.logged.is_none_or(is_due) {
            return;
        }
        self.logged = Some(now);
        let counts = self.refused.iter();
        let counts: Vec<String> = counts
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        warn!(
            "a manager's connection query was refused ({}): {detail}",
            counts.join(", ")
        );
    }
}

#[cfg(test)]
mod tests {
    use lb_core::BootId;

    use super::*;

    fn heartbeat(boot: u64, number: u64) -> Sequence {
        Sequence {
            boot: BootId(boot),
            number,
        }
    }

    fn query(heartbeat: Sequence, clients: usize) -> ConnectionQuery {
        ConnectionQuery {
            heartbeat,
            nonce: 1,
            service: "192.168.56.101:80".parse().unwrap(),
            clients: vec![([192, 168, 56, 10], 40_000).into(); clients],
        }
    }

    #[tokio::test]
    async fn refuses_an_old_query_and_too_many() {
        let start = Instant::now();
        let mut queries = ConnectionQueries::new(start);
        let sent = heartbeat(7, 1_000);
        let mut check = |heartbeat, after| {
            let now = start + Duration::from_millis(after);
            let outcome = queries.check(&query(heartbeat, 40), sent, now);
            outcome.err().map(|refusal| refusal.name())
        };
        assert_eq!(check(heartbeat(7, 1_000), 0), None);
        assert_eq!(check(heartbeat(7, 873), 0), None);
        for old in [heartbeat(7, 872), heartbeat(8, 1_000), heartbeat(7, 1_001)] {
            assert_eq!(check(old, 0), Some("old_query"));
        }
        let accepted = |after, check: &mut dyn FnMut(Sequence, u64) -> Option<&'static str>| {
            (0..200)
                .filter(|_| check(heartbeat(7, 1_000), after).is_none())
                .count()
        };
        assert_eq!(accepted(0, &mut check), 98);
        assert_eq!(accepted(500, &mut check), 50);
        assert_eq!(accepted(60_000, &mut check), 100);
        assert_eq!(check(heartbeat(7, 1_000), 60_000), Some("rate_limited"));
    }
}
