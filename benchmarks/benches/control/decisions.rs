//! A thousand decisions a second, each written to the maps, while clients send requests without pause.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use memlb_tests::{
    Cluster, ClusterOptions, Connection, Probe, cluster_options::worker_name, wait_until,
};

use crate::crowd::heartbeat;

/// Interval of decisions and of new connections, so that each decision gets one.
const INTERVAL: Duration = Duration::from_millis(1);

const DURATION: Duration = Duration::from_secs(10);
const KEPT_ALIVE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Outcome {
    pub decisions: usize,
    pub seconds: f64,
    pub requests: usize,
    pub failures: Vec<String>,
}

/// Changes one worker's memory beyond the threshold with every heartbeat.
///
/// # Errors
///
/// A part does not start, or the decisions have no effect.
pub fn measure() -> Result<Outcome> {
    let cluster = Cluster::start(&ClusterOptions {
        agents: false,
        manager_arguments: ["threshold=64MiB", "hold=0s"]
            .iter()
            .flat_map(|setting| ["--set".to_owned(), format!("service.web.{setting}")])
            .collect(),
        ..ClusterOptions::default()
    })?;
    let host = &cluster.topology.workers[0];
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect(cluster.heartbeat_address())?;
    let mut seq = 0;
    let mut send = || -> Result<()> {
        let moving = if seq % 2 == 0 { 600 } else { 200 };
        for (index, available_mib) in [(0, moving), (1, 400)] {
            let datagram =
                heartbeat(&worker_name(index), seq + 1, INTERVAL, available_mib << 20).encode();
            socket.send(&datagram.map_err(|refusal| anyhow!("encode: {refusal}"))?)?;
        }
        seq += 1;
        Ok(())
    };
    send()?;
    wait_until(SOON, "a worker to serve", || {
        cluster.page().is_ok_and(|page| page.starts_with("Worker"))
    })?;
    let decided = || Ok::<_, anyhow::Error>(cluster.events_of("selection_changed")?.len());
    let before = decided()?;
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), INTERVAL, PATIENCE)?;
    let (server, over) = (cluster.service(), AtomicBool::new(false));
    let (spoken, kept) = thread::scope(|scope| -> Result<_> {
        let clients = scope.spawn(|| client.enter(|| send_requests(server, &over)));
        let started = Instant::now();
        let mut due = started;
        let spoken = loop {
            if started.elapsed() >= DURATION {
                break Ok(started.elapsed());
            }
            if let Err(error) = send() {
                break Err(error);
            }
            due += INTERVAL;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        };
        over.store(true, Ordering::Relaxed);
        let kept = clients.join().map_err(|_| anyhow!("a client panicked"))??;
        Ok((spoken?, kept))
    })?;
    let report = probe.stop()?;
    wait_until(SOON, "the events of the decisions", || {
        decided().is_ok_and(|now| now - before + 100 >= spoken.as_millis() as usize)
    })
    .with_context(|| format!("{:?} of them in {spoken:?}", decided()))?;
    let pages: BTreeSet<&str> = report
        .requests
        .iter()
        .filter_map(|request| request.page())
        .collect();
    let mut failures: Vec<String> = kept.1;
    failures.extend(
        report
            .failures()
            .filter_map(|request| request.answer.clone().err()),
    );
    let strange = pages.iter().filter(|page| !page.starts_with("Worker"));
    failures.extend(strange.map(|page| format!("the page was {page}")));
    anyhow::ensure!(pages.len() > 1, "new connections saw {pages:?} only");
    Ok(Outcome {
        decisions: decided()? - before,
        seconds: spoken.as_secs_f64(),
        requests: kept.0 + report.requests.len(),
        failures,
    })
}

/// Sends requests over kept-alive connections. Returns their number and the failures.
fn send_requests(server: SocketAddr, over: &AtomicBool) -> (usize, Vec<String>) {
    let ask = || {
        let (mut requests, mut failures) = (0, Vec::new());
        while !over.load(Ordering::Relaxed) {
            let answered = Connection::open_here(server, PATIENCE).and_then(|mut connection| {
                // About as many as nginx accepts on one connection.
                for _ in 0..500 {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    requests += 1;
                    let page = connection.get("/")?.first_line();
                    if !page.starts_with("Worker") {
                        return Err(std::io::Error::other(format!("the page was {page}")));
                    }
                }
                Ok(())
            });
            failures.extend(answered.err().map(|error| error.to_string()));
        }
        (requests, failures)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..KEPT_ALIVE).map(|_| scope.spawn(ask)).collect();
        let mut all = (0, Vec::new());
        for client in clients {
            let (requests, failures) = client
                .join()
                .unwrap_or_else(|_| (0, vec!["a client panicked".to_owned()]));
            all.0 += requests;
            all.1.extend(failures);
        }
        all
    })
}
