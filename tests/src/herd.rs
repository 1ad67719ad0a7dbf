//! Workers whose memory usage follows their connections: nginx keeps the request's body of each open connection in
//! memory, and the worker's agent reports that memory.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::unistd::{SysconfVar, sysconf};

use crate::{
    client::Connection,
    cluster::Cluster,
    cluster_options::{ClusterOptions, worker_name},
    memory_file::MemoryFile,
    nginx::HELD_PATH,
    random::Random,
};

/// The workers' memory for connections, of which half is used on average.
pub const SIZES_MIB: [u64; 6] = [80, 64, 48, 48, 32, 32];

const CONNECTION_BYTES: usize = 512 << 10;
const ARRIVALS_PER_SECOND: f64 = 152.0;
const STAY: Duration = Duration::from_secs(2);
const LONGEST_STAY: Duration = Duration::from_secs(10);

const METER_INTERVAL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);

/// The options of a run.
#[derive(Debug, Clone, Copy)]
pub struct Herd<'a> {
    pub policy: &'a str,
    pub report_interval: Duration,
    pub duration: Duration,
    /// One seed gives the same clients for every policy.
    pub seed: u64,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct HerdOutcome {
    /// The peak memory of each worker's connections, in percent of its size.
    pub peaks_percent: Vec<f64>,
    pub connections: usize,
    pub failures: Vec<String>,
}

impl HerdOutcome {
    pub fn fullest_percent(&self) -> f64 {
        self.peaks_percent.iter().copied().fold(0.0, f64::max)
    }
}

impl Herd<'_> {
    /// Starts the system, opens and closes connections, and measures the workers' memory continuously.
    ///
    /// # Errors
    /// When a part of the system does not start or work.
    pub fn run(&self) -> Result<HerdOutcome> {
        let mut cluster = self.cluster()?;
        let meters: Vec<Meter> = (0..SIZES_MIB.len())
            .map(|index| Meter::of(&cluster, index))
            .collect::<Result<_>>()?;
        // So that the first heartbeat has the measured figure.
        for (index, meter) in meters.iter().enumerate() {
            meter.read()?;
            cluster.start_agent(index)?;
        }
        for index in 0..meters.len() {
            cluster.wait_for_state(&worker_name(index), "up", SOON)?;
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let metering = scope.spawn(|| keep_metering(&meters, &over));
            let client = &cluster.topology.client;
            let server = cluster.service();
            let came = client.enter(|| self.open_connections(server));
            over.store(true, Ordering::Relaxed);
            let peaks = metering.join().map_err(|_| anyhow!("the meter panicked"))?;
            let (connections, failures) = came?;
            Ok(HerdOutcome {
                peaks_percent: peaks?,
                connections,
                failures,
            })
        })
    }

    fn cluster(&self) -> Result<Cluster> {
        let interval = self.report_interval.as_millis();
        let down_after = (self.report_interval * 4).max(Duration::from_millis(1_500));
        let settings = [
            format!("service.web.policy={}", self.policy),
            // All connections go to the worker with the most memory.
            "service.web.threshold=1MiB".to_owned(),
            format!("failover.down_after={}ms", down_after.as_millis()),
        ];
        Cluster::start(&ClusterOptions {
            available_kb: SIZES_MIB.map(|mib| mib * 1024).to_vec(),
            agents: false,
            agent_arguments: vec!["--interval".to_owned(), format!("{interval}ms")],
            settings: settings.into(),
            ..ClusterOptions::default()
        })
    }

    /// Opens connections at random times and keeps each open for its duration. Returns their number and the failures.
    fn open_connections(&self, server: SocketAddr) -> (usize, Vec<String>) {
        let mut random = Random(self.seed);
        let (mut kept, mut failures) = (BTreeMap::new(), Vec::new());
        let mut connections = 0;
        let end = Instant::now() + self.duration;
        let mut arrival = Instant::now();
        thread::scope(|scope| {
            let (opened, ready) = mpsc::channel();
            loop {
                let now = Instant::now();
                if now >= end {
                    break;
                }
                for (leaves, held) in ready.try_iter() {
                    match held {
                        Ok(stream) => _ = kept.insert((leaves, connections), stream),
                        Err(error) => failures.push(format!("{error}")),
                    }
                    connections += 1;
                }
                kept.retain(|(leaves, _), _| *leaves > now);
                while arrival <= now {
                    let stay = STAY.mul_f64(random.exponential()).min(LONGEST_STAY);
                    let (opened, leaves) = (opened.clone(), arrival + stay);
                    // A client that no longer waits does not need it.
                    scope.spawn(move || _ = opened.send((leaves, hold(server))));
                    arrival += Duration::from_secs_f64(random.exponential() / ARRIVALS_PER_SECOND);
                }
                let next = arrival.min(now + METER_INTERVAL / 4);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        (connections, failures)
    }
}

/// Sends a request without its last byte, so that the server keeps it in memory.
fn hold(server: SocketAddr) -> io::Result<TcpStream> {
    let connection = Connection::open_here(server, PATIENCE)?;
    let mut stream = connection.stream().try_clone()?;
    let head = format!(
        "POST {HELD_PATH} HTTP/1.1\r\nHost: memlb\r\nContent-Length: {CONNECTION_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&vec![0; CONNECTION_BYTES - 1])?;
    Ok(stream)
}

/// Reads one worker's memory, and writes it to the agent's file.
#[derive(Debug)]
struct Meter {
    statm: String,
    page_bytes: u64,
    /// The memory of nginx without connections.
    idle_bytes: u64,
    size_bytes: u64,
    file: MemoryFile,
}

impl Meter {
    fn of(cluster: &Cluster, index: usize) -> Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.context("a page has a size")?;
        let mut meter = Self {
            statm: format!("/proc/{}/statm", cluster.servers[index].process.pid()),
            page_bytes: u64::try_from(page)?,
            idle_bytes: 0,
            size_bytes: SIZES_MIB[index] << 20,
            file: cluster.memory[index].clone(),
        };
        meter.idle_bytes = meter.anonymous_bytes()?;
        Ok(meter)
    }

    /// Returns the connections' current memory, in percent of the worker's size.
    fn read(&self) -> Result<f64> {
        let taken = self.anonymous_bytes()?.saturating_sub(self.idle_bytes);
        let available = self.size_bytes.saturating_sub(taken);
        self.file.set(self.size_bytes / 1024, available / 1024)?;
        Ok(taken as f64 / self.size_bytes as f64 * 100.0)
    }

    /// The resident anonymous memory.
    fn anonymous_bytes(&self) -> Result<u64> {
        let statm = fs::read_to_string(&self.statm).context("read nginx's memory")?;
        let mut pages = statm.split(' ').skip(1).map(str::parse::<u64>);
        match (pages.next(), pages.next()) {
            (Some(Ok(resident)), Some(Ok(shared))) => {
                Ok(resident.saturating_sub(shared) * self.page_bytes)
            }
            _ => Err(anyhow!("{} holds {statm:?}", self.statm)),
        }
    }
}

fn keep_metering(meters: &[Meter], over: &AtomicBool) -> Result<Vec<f64>> {
    let mut peaks = vec![0.0; meters.len()];
    while !over.load(Ordering::Relaxed) {
        for (peak, meter) in peaks.iter_mut().zip(meters) {
            *peak = meter.read()?.max(*peak);
        }
        thread::sleep(METER_INTERVAL);
    }
    Ok(peaks)
}
