//! The unknown clients about which the agents are queried, and the replies.
//!
//! Pure: sockets, maps and the clock are the caller's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_common::maps::FlowRecord;
use lb_core::{BackendId, Endpoint, Sequence};

use crate::{
    heartbeat::{ConnectionReply, MAX_CLIENTS},
    heartbeat_receiver::AgentAddress,
    token_bucket::TokenBucket,
};

/// How long the agents are queried about an unknown client. Afterwards the kernel resets its connection.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// The most clients that are looked up a second.
const CLIENTS_PER_SECOND: u32 = 2_000;

/// When the query to an agent that has not replied is repeated.
const RETRY_AFTER: Duration = Duration::from_millis(300);
const MAX_ATTEMPTS: u8 = 2;

/// A client of a service.
pub(super) type LookupClient = (Endpoint, SocketAddr);

/// A worker whose agent can be queried about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub service: Endpoint,
    pub backend: BackendId,
    pub agent: AgentAddress,
    /// The agent's last accepted heartbeat.
    pub heartbeat: Sequence,
}

/// The outcomes of lookups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LookupCounts {
    /// A worker has the connection.
    pub found: u64,
    /// No agent reported the connection within [`LOOKUP_TIMEOUT`].
    pub not_found: u64,
    /// Not looked up, because of the rate limit.
    pub limited: u64,
}

/// The clients that wait for a reply, and the queries that were sent.
#[derive(Debug)]
pub(super) struct PendingLookups {
    pending: BTreeMap<LookupClient, PendingLookup>,
    /// By nonce.
    sent: BTreeMap<u64, SentQuery>,
    limit: TokenBucket,
    counts: LookupCounts,
}

#[derive(Debug)]
struct PendingLookup {
    record: FlowRecord,
    since: Instant,
    queries: BTreeMap<BackendId, AgentQuery>,
}

/// The queries to one agent about one client.
#[derive(Debug, Clone, Copy)]
struct AgentQuery {
    attempts: u8,
    /// The last attempt.
    at: Instant,
    has_replied: bool,
}

#[derive(Debug)]
struct SentQuery {
    candidate: Candidate,
    clients: Vec<SocketAddr>,
    at: Instant,
}

impl PendingLookups {
    pub fn new(now: Instant) -> Self {
        Self {
            pending: BTreeMap::new(),
            sent: BTreeMap::new(),
            limit: TokenBucket::new(CLIENTS_PER_SECOND, now),
            counts: LookupCounts::default(),
        }
    }

    /// Adds an unknown client, unless there are too many.
    pub fn add(&mut self, client: LookupClient, record: FlowRecord, now: Instant) {
        if self.pending.contains_key(&client) {
            return;
        }
        if !self.limit.try_acquire(1, now) {
            self.counts.limited += 1;
            return;
        }
        let pending = PendingLookup {
            record,
            since: now,
            queries: BTreeMap::new(),
        };
        self.pending.insert(client, pending);
    }

    /// Whether a client waits for a reply.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns the services of the clients that wait.
    pub fn services(&self) -> BTreeSet<Endpoint> {
        self.pending.keys().map(|(service, _)| *service).collect()
    }

    /// Returns the clients about which this agent must be queried now, at most [`MAX_CLIENTS`].
    pub fn due(&self, candidate: &Candidate, now: Instant) -> Vec<SocketAddr> {
        let is_due = |pending: &PendingLookup| match pending.queries.get(&candidate.backend) {
            None => true,
            Some(query) => {
                let waited = now.saturating_duration_since(query.at);
                !query.has_replied && query.attempts < MAX_ATTEMPTS && waited >= RETRY_AFTER
            }
        };
        let pending = self.pending.iter();
        let due = pending
            .filter(|((service, _), pending)| *service == candidate.service && is_due(pending));
        due.map(|((_, client), _)| *client)
            .take(MAX_CLIENTS)
            .collect()
    }

    /// Records that a query about these clients was sent to an agent.
    pub fn record_query(
        &mut self,
        nonce: u64,
        candidate: Candidate,
        clients: Vec<SocketAddr>,
        now: Instant,
    ) {
        for client in &clients {
            if let Some(pending) = self.pending.get_mut(&(candidate.service, *client)) {
                let query = pending.queries.entry(candidate.backend);
                let query = query.or_insert(AgentQuery {
                    attempts: 0,
                    at: now,
                    has_replied: false,
                });
                query.attempts += 1;
                query.at = now;
            }
        }
        let sent = SentQuery {
            candidate,
            clients,
            at: now,
        };
        self.sent.insert(nonce, sent);
    }

    /// Handles an agent's reply; returns the records of its connections, or `None` if it belongs to no query to this
    /// agent.
    pub fn handle_reply(
        &mut self,
        reply: ConnectionReply,
        agent: &AgentAddress,
        now: Instant,
    ) -> Option<Vec<FlowRecord>> {
        let is_timely = |sent: &SentQuery| now.saturating_duration_since(sent.at) < LOOKUP_TIMEOUT;
        let sent = self.sent.get(&reply.nonce)?;
        if sent.candidate.agent != *agent || !is_timely(sent) {
            return None;
        }
        let SentQuery {
            candidate, clients, ..
        } = self.sent.remove(&reply.nonce)?;
        let mut found = Vec::new();
        for (index, client) in clients.into_iter().enumerate() {
            let key = (candidate.service, client);
            if reply.known_clients >> index & 1 == 0 {
                let pending = self.pending.get_mut(&key);
                if let Some(query) = pending.and_then(|it| it.queries.get_mut(&candidate.backend)) {
                    query.has_replied = true;
                }
            } else if let Some(pending) = self.pending.remove(&key) {
                self.counts.found += 1;
                found.push(FlowRecord {
                    backend: candidate.backend.0,
                    ..pending.record
                });
            }
        }
        Some(found)
    }

    /// Removes the clients and queries that are older than [`LOOKUP_TIMEOUT`].
    pub fn expire(&mut self, now: Instant) {
        let is_over = |since| now.saturating_duration_since(since) >= LOOKUP_TIMEOUT;
        let before = self.pending.len();
        self.pending.retain(|_, pending| !is_over(pending.since));
        self.counts.not_found += (before - self.pending.len()) as u64;
        self.sent.retain(|_, sent| !is_over(sent.at));
    }

    /// Returns the outcomes since the last call.
    pub fn drain_counts(&mut self) -> LookupCounts {
        std::mem::take(&mut self.counts)
    }
}

#[cfg(test)]
mod tests {
    use lb_core::BootId;

    use super::*;

    fn client(number: u16) -> SocketAddr {
        ([192, 168, 56, 10], number).into()
    }

    fn service() -> Endpoint {
        "192.168.56.101:80".parse().unwrap()
    }

    fn candidate(backend: u32) -> Candidate {
        Candidate {
            service: service(),
            backend: BackendId(backend),
            agent: AgentAddress::example(u16::try_from(backend).unwrap()),
            heartbeat: Sequence {
                boot: BootId(1),
                number: 1,
            },
        }
    }

    fn add(pending: &mut PendingLookups, numbers: std::ops::Range<u16>, now: Instant) {
        for number in numbers {
            pending.add((service(), client(number)), FlowRecord::NONE, now);
        }
    }

    #[test]
    fn queries_each_agent_once_and_one_without_a_reply_twice() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let (one, two) = (candidate(1), candidate(2));
        let mut pending = PendingLookups::new(start);
        add(&mut pending, 1..4, start);
        let all = [1, 2, 3].map(client).to_vec();
        for candidate in [one, two] {
            assert_eq!(pending.due(&candidate, start), all);
            pending.record_query(
                u64::from(candidate.backend.0),
                candidate,
                all.clone(),
                start,
            );
            assert_eq!(pending.due(&candidate, after(299)), []);
        }
        let none = ConnectionReply {
            nonce: 1,
            known_clients: 0,
        };
        assert_eq!(
            pending.handle_reply(none, &one.agent, after(5)),
            Some(vec![])
        );
        // Each reply counts once, and only from the agent that was queried.
        assert_eq!(pending.handle_reply(none, &one.agent, after(5)), None);
        let some = ConnectionReply {
            nonce: 2,
            known_clients: 5,
        };
        assert_eq!(pending.handle_reply(some, &one.agent, after(5)), None);
        let found = pending.handle_reply(some, &two.agent, after(5)).unwrap();
        assert_eq!(
            found.iter().map(|it| it.backend).collect::<Vec<_>>(),
            [2, 2]
        );
        assert_eq!(pending.due(&one, after(600)), []);
        // An agent that comes up later is queried, too, and one that does not reply is queried once more.
        let three = candidate(3);
        for (ms, due) in [(300, 1), (400, 0), (600, 1), (950, 0)] {
            let clients = pending.due(&three, after(ms));
            assert_eq!(clients.len(), due, "{ms}");
            if due > 0 {
                pending.record_query(ms, three, clients, after(ms));
            }
        }
        pending.expire(after(999));
        assert!(pending.is_waiting());
        pending.expire(after(1_000));
        assert!(!pending.is_waiting());
        let late = ConnectionReply {
            nonce: 600,
            known_clients: 1,
        };
        assert_eq!(pending.handle_reply(late, &three.agent, after(1_600)), None);
        let outcome = LookupCounts {
            found: 2,
            not_found: 1,
            limited: 0,
        };
        assert_eq!(pending.drain_counts(), outcome);
        assert_eq!(pending.drain_counts(), LookupCounts::default());
    }

    #[test]
    fn an_unsolicited_reply_admits_no_connection() {
        let start = Instant::now();
        let mut pending = PendingLookups::new(start);
        add(&mut pending, 1..2, start);
        let unsolicited = ConnectionReply {
            nonce: 9,
            known_clients: u64::MAX,
        };
        assert_eq!(
            pending.handle_reply(unsolicited, &candidate(1).agent, start),
            None
        );
        pending.record_query(9, candidate(1), vec![client(1)], start);
        let found = pending
            .handle_reply(unsolicited, &candidate(1).agent, start)
            .unwrap();
        assert_eq!(
            found.len(),
            1,
            "bits beyond the clients of the query mean nothing"
        );
    }

    #[test]
    fn queries_about_a_flood_are_limited() {
        let start = Instant::now();
        let mut pending = PendingLookups::new(start);
        let mut queried = 0;
        for ms in 0..3_000u64 {
            let now = start + Duration::from_millis(ms);
            let first = u16::try_from(ms % 60 * 1_000).unwrap();
            add(&mut pending, first..first + 100, now);
            loop {
                let clients = pending.due(&candidate(1), now);
                if clients.is_empty() {
                    break;
                }
                assert!(clients.len() <= MAX_CLIENTS);
                queried += clients.len();
                pending.record_query(ms * 100 + queried as u64, candidate(1), clients, now);
            }
            pending.expire(now);
        }
        let LookupCounts {
            not_found, limited, ..
        } = pending.drain_counts();
        // 2,000 at once, and as many in each second.
        assert!(not_found + pending.pending.len() as u64 <= 8_000);
        assert!(limited > 100_000, "{limited}");
        assert!(queried <= 2 * 8_000, "{queried}");
    }
}
