//! A client that requests the page every few milliseconds and records the answers.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::{
    client::Connection,
    namespace::Namespace,
    notice::print_message,
    wait::{wait_for, wait_until},
};

/// One request on a connection of its own.
#[derive(Debug, Clone)]
pub struct Request {
    pub sent_at: Instant,
    pub ended_at: Instant,
    /// The page's first line, or what went wrong.
    pub answer: Result<String, String>,
}

impl Request {
    pub fn page(&self) -> Option<&str> {
        self.answer.as_deref().ok()
    }
}

/// A running client. A request without an answer does not delay the next one.
#[derive(Debug)]
pub struct Probe {
    log: Arc<RequestLog>,
    pacemaker: Option<JoinHandle<()>>,
    started_at: Instant,
}

impl Probe {
    /// Starts to request `/` of `server` from `namespace`, with an interval of `every`. A request without an answer
    /// after `patience` has failed.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(
        namespace: &Namespace,
        server: SocketAddr,
        every: Duration,
        patience: Duration,
    ) -> Result<Self> {
        let log = Arc::new(RequestLog::default());
        let shared = Arc::clone(&log);
        // Threads inherit the namespace of the thread that starts them.
        let pacemaker = namespace
            .enter(|| thread::spawn(move || send_requests(server, every, patience, &shared)))?;
        Ok(Self {
            log,
            pacemaker: Some(pacemaker),
            started_at: Instant::now(),
        })
    }

    /// Returns the report so far.
    pub fn report(&self) -> Report {
        let requests = self.log.entries().ended.clone();
        Report::new(self.started_at, Instant::now(), requests)
    }

    /// Takes the requests that have ended out of the report, to limit its size.
    pub fn take(&self) -> Vec<Request> {
        mem::take(&mut self.log.entries().ended)
    }

    /// Waits until `page` is what newly made connections get, and returns the
    /// first such answer to a request made at `since` or later.
    ///
    /// # Errors
    /// When that does not happen within `deadline`.
    pub fn wait_for_page(&self, page: &str, since: Instant, deadline: Duration) -> Result<Request> {
        wait_for(deadline, &format!("the page {page}"), || {
            let entries = self.log.entries();
            let mut requests = entries.ended.iter();
            requests
                .find(|request| request.sent_at >= since && request.page() == Some(page))
                .cloned()
        })
    }

    /// Waits until every request made before `moment` has been answered or has
    /// failed.
    ///
    /// # Errors
    /// When that does not happen within `deadline`.
    pub fn wait_for_answers(&self, moment: Instant, deadline: Duration) -> Result<()> {
        wait_until(deadline, "every request to end", || {
            let entries = self.log.entries();
            entries.open.values().all(|sent_at| *sent_at >= moment)
        })
        .map(drop)
    }

    /// Stops sending, waits for the last answers, and returns the report.
    ///
    /// # Errors
    /// When the client itself has failed.
    pub fn stop(mut self) -> Result<Report> {
        self.log.closed.store(true, Ordering::Relaxed);
        if let Some(pacemaker) = self.pacemaker.take() {
            pacemaker
                .join()
                .map_err(|_| anyhow!("the asking client panicked"))?;
        }
        Ok(self.report())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.log.closed.store(true, Ordering::Relaxed);
        if let Some(pacemaker) = self.pacemaker.take()
            && pacemaker.join().is_err()
        {
            print_message("the asking client panicked");
        }
    }
}

/// The requests of a [`Probe`], in the order of sending.
#[derive(Debug, Clone)]
pub struct Report {
    pub started_at: Instant,
    pub ended_at: Instant,
    pub requests: Vec<Request>,
}

impl Report {
    fn new(started_at: Instant, ended_at: Instant, mut requests: Vec<Request>) -> Self {
        requests.sort_by_key(|request| request.sent_at);
        Self {
            started_at,
            ended_at,
            requests,
        }
    }

    /// Returns the part of the report about requests made at `since` or later.
    pub fn since(&self, since: Instant) -> Self {
        let requests = self
            .requests
            .iter()
            .filter(|request| request.sent_at >= since)
            .cloned()
            .collect();
        Self {
            started_at: since.max(self.started_at),
            ended_at: self.ended_at,
            requests,
        }
    }

    pub fn failures(&self) -> impl Iterator<Item = &Request> {
        self.requests
            .iter()
            .filter(|request| request.answer.is_err())
    }

    /// # Panics
    /// When a request failed.
    pub fn assert_no_failure(&self) {
        let failures: Vec<_> = self.failures().collect();
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Returns the longest time without a good answer to any request.
    pub fn longest_outage(&self) -> Duration {
        let mut answered: Vec<Instant> = self
            .requests
            .iter()
            .filter(|request| request.answer.is_ok())
            .map(|request| request.ended_at)
            .collect();
        answered.sort_unstable();
        let before = [self.started_at]
            .into_iter()
            .chain(answered.iter().copied());
        let after = answered.iter().copied().chain([self.ended_at]);
        before
            .zip(after)
            .map(|(before, after)| after.saturating_duration_since(before))
            .max()
            .unwrap_or_default()
    }

    /// Returns the pages seen and how often in a row; failures do not count.
    pub fn runs(&self) -> Vec<(&str, usize)> {
        let mut runs: Vec<(&str, usize)> = Vec::new();
        for page in self.requests.iter().filter_map(Request::page) {
            match runs.last_mut() {
                Some((last, count)) if *last == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }
}

/// The shared state of the client's threads.
#[derive(Debug, Default)]
struct RequestLog {
    entries: Mutex<Entries>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Entries {
    ended: Vec<Request>,
    /// When those were made that have not ended yet, by their number.
    open: BTreeMap<u64, Instant>,
}

impl RequestLog {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_requests(server: SocketAddr, every: Duration, patience: Duration, log: &RequestLog) {
    thread::scope(|scope| {
        let mut next = Instant::now();
        for number in 0.. {
            if log.closed.load(Ordering::Relaxed) {
                return;
            }
            let sent_at = Instant::now();
            log.entries().open.insert(number, sent_at);
            scope.spawn(move || {
                let answer = request_page(server, patience);
                let mut entries = log.entries();
                entries.open.remove(&number);
                entries.ended.push(Request {
                    sent_at,
                    ended_at: Instant::now(),
                    answer,
                });
            });
            next += every;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
}

/// Sends one request. Returns the page's first line, or the failure.
fn request_page(server: SocketAddr, patience: Duration) -> Result<String, String> {
    let connection = match Connection::open_here_from(next_port(), server, patience) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Connection::open_here(server, patience)
        }
        other => other,
    };
    match connection.and_then(|mut connection| connection.get("/")) {
        Ok(response) if response.status == 200 => Ok(response.first_line()),
        Ok(response) => Err(format!("HTTP status {}", response.status)),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns client ports in sequence. The kernel would soon use one again, while a table of connections still has an
/// entry of the earlier request.
fn next_port() -> u16 {
    const FIRST: u16 = 33_000;
    const COUNT: u16 = 27_000;
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed) % u32::from(COUNT);
    FIRST + u16::try_from(call).unwrap_or_default()
}
