//! Hand-made heartbeats, for those that no real agent sends.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use serde_json::json;

use crate::namespace::Namespace;

/// A UDP socket in a namespace, connected to a manager.
#[derive(Debug)]
pub struct Sender {
    socket: UdpSocket,
}

impl Sender {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the manager not be reached.
    pub fn open(namespace: &Namespace, manager: SocketAddr) -> Result<Self> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(manager)?;
            Ok::<_, std::io::Error>(socket)
        })??;
        Ok(Self { socket })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, datagram: impl AsRef<[u8]>) -> Result<()> {
        self.socket
            .send(datagram.as_ref())
            .context("send a datagram")?;
        Ok(())
    }

    /// Sends a heartbeat of 2018: the file's name, then the file.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send_legacy(&self, worker: &str, clock: &str, free_mib: u64) -> Result<()> {
        self.send(format!("{worker}_memory.json"))?;
        self.send(format!(
            "[{{\"NamaWorker\": \"{worker}\", \"IP\": \"192.168.56.1\", \"Waktu\": \"{clock}\", \
             \"freeMemory\": \"{free_mib}\"}}]"
        ))
    }
}

/// Returns a valid heartbeat of version 1 of a worker with 700 MiB.
pub fn heartbeat(worker: &str, boot: u64, seq: u64, available_kb: u64) -> String {
    json!({
        "memlb": 1,
        "worker": worker,
        "boot": format!("{boot:016x}"),
        "seq": seq,
        "interval_ms": 100,
        "memory": {
            "available_bytes": available_kb * 1024,
            "total_bytes": 700 * 1024 * 1024,
        },
        "state": "ready",
        "healthy": true,
        "version": "0.1.0",
    })
    .to_string()
}
