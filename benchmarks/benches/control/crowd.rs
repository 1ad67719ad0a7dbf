//! Signed heartbeats of a thousand workers, from one thread and one socket, so that they cost little beside the
//! manager.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use lb_core::{BootId, WorkerState};
use memlb::{
    heartbeat::{Acknowledgement, Heartbeat, MemoryReport, Nonce},
    keys::{self, Key, KeyId, KeyRing},
};
use memlb_tests::{Cluster, ClusterOptions};

pub const WORKERS: usize = 1_000;

/// The agents' default.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The sender of all heartbeats.
#[derive(Debug)]
pub struct Crowd {
    keys: KeyRing,
    /// In the order of their next heartbeats.
    workers: VecDeque<SignedWorker>,
    socket: UdpSocket,
    /// The last nonce; the manager's nonces are for an address, not for a worker.
    nonce: Option<Nonce>,
    sent: u64,
}

#[derive(Debug)]
struct SignedWorker {
    key: Key,
    seq: u64,
    due: Instant,
    last_sent: SystemTime,
}

impl Crowd {
    /// Starts a manager with one service of all workers. Sends nothing yet.
    ///
    /// # Errors
    ///
    /// The manager does not start.
    pub fn start(policy: &str) -> Result<(Cluster, Self)> {
        let (mut workers, mut lines) = (String::new(), String::new());
        for number in 0..WORKERS {
            let (name, network, host) = (name(number), 60 + number / 200, number % 200 + 1);
            write!(
                workers,
                "{{ name = \"{name}\", address = \"192.168.{network}.{host}:8081\" }},"
            )?;
            let secret: String = (0..32)
                .map(|byte| format!("{:02x}", (number + byte) % 256))
                .collect();
            writeln!(lines, "memlb-key-1 {name} {number:08x} {secret}")?;
        }
        let directory = tempfile::tempdir().context("make a directory for the keys")?;
        let file = directory.path().join("crowd.key");
        fs::write(&file, lines).context("write the keys")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let settings = [
            format!("service.web.workers=[{workers}]"),
            format!("service.web.policy={policy}"),
            "limits.backends=2048".to_owned(),
            "heartbeats.authentication=enforce".to_owned(),
            format!("heartbeats.keys={}", file.display()),
        ];
        let cluster = Cluster::start(&ClusterOptions {
            agents: false,
            manager_arguments: settings
                .into_iter()
                .flat_map(|setting| ["--set".to_owned(), setting])
                .collect(),
            ..ClusterOptions::default()
        })?;
        let keys = keys::read_keys(&file)?;
        let host = &cluster.topology.workers[0];
        let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect(cluster.heartbeat_address())?;
        socket.set_nonblocking(true)?;
        let (start, step) = (Instant::now(), INTERVAL / WORKERS as u32);
        let workers = (0..WORKERS).map(|number| {
            Some(SignedWorker {
                key: keys.of_worker(&name(number)).next()?.clone(),
                seq: 0,
                // Agents start at any time.
                due: start + step * number as u32,
                last_sent: SystemTime::UNIX_EPOCH,
            })
        });
        let crowd = Self {
            workers: workers.collect::<Option<_>>().context("a key for each")?,
            keys,
            socket,
            nonce: None,
            sent: 0,
        };
        Ok((cluster, crowd))
    }

    /// Sends each worker's heartbeats at their times, for `duration`.
    ///
    /// # Errors
    ///
    /// A heartbeat cannot be encoded.
    pub fn send_for(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.receive_nonces();
            while self.workers.front().is_some_and(|worker| worker.due <= now) {
                self.send_next(now)?;
            }
            let next = self
                .workers
                .front()
                .map_or(end, |worker| worker.due.min(end));
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// Stops the worker that sent last. Returns its name and the time of its last heartbeat.
    pub fn stop_one(&mut self) -> Option<(String, SystemTime)> {
        let worker = self.workers.pop_back()?;
        Some((worker.key.worker().to_owned(), worker.last_sent))
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn send_next(&mut self, now: Instant) -> Result<()> {
        let Some(mut worker) = self.workers.pop_front() else {
            return Ok(());
        };
        worker.seq += 1;
        // A worker that is late by more than an interval skips a heartbeat.
        worker.due = (worker.due + INTERVAL).max(now);
        // A different figure each time, as of a busy machine.
        let available_bytes = (400 << 20) - ((worker.seq % 256) << 12);
        let mut heartbeat = heartbeat(worker.key.worker(), worker.seq, INTERVAL, available_bytes);
        heartbeat.nonce = self.nonce;
        let datagram = heartbeat
            .encode_signed(&worker.key)
            .map_err(|refusal| anyhow::anyhow!("encode a heartbeat: {refusal}"))?;
        // A datagram for which the kernel has no room is lost, as on a network.
        if self.socket.send(&datagram).is_ok() {
            self.sent += 1;
            worker.last_sent = SystemTime::now();
        }
        self.workers.push_back(worker);
        Ok(())
    }

    fn receive_nonces(&mut self) {
        let mut buffer = [0; 1_200];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let id = buffer.get(11..19).and_then(KeyId::parse);
            let key = id.and_then(|id| self.keys.find(id));
            let answer = key.and_then(|key| Acknowledgement::decode(&buffer[..length], key).ok());
            self.nonce = answer.map(|answer| answer.nonce).or(self.nonce);
        }
    }
}

fn name(number: usize) -> String {
    format!("w{number:04}")
}

/// A heartbeat of a ready worker without a nonce.
pub fn heartbeat(worker: &str, seq: u64, interval: Duration, available_bytes: u64) -> Heartbeat {
    Heartbeat {
        worker: worker.to_owned(),
        boot: BootId(1),
        seq,
        interval,
        memory: MemoryReport {
            available_bytes,
            total_bytes: 700 << 20,
            stale_ms: None,
            cgroup: None,
            pressure: None,
        },
        state: WorkerState::Ready,
        healthy: true,
        checked: false,
        translates: Vec::new(),
        version: "0.1.0".to_owned(),
        pause: None,
        nonce: None,
    }
}

/// Returns the processor time of the manager.
///
/// # Errors
///
/// No manager runs.
pub fn processor_time(cluster: &Cluster) -> Result<Duration> {
    let manager = cluster.manager.as_ref().context("a manager runs")?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", manager.pid()))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields.get(field).and_then(|it| it.parse::<u64>().ok());
    // USER_HZ is 100 on all supported architectures.
    let (user, system) = (ticks(11).context("utime")?, ticks(12).context("stime")?);
    Ok(Duration::from_millis(10) * u32::try_from(user + system)?)
}
