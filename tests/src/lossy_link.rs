//! A link between an agent and a manager, in a worker's namespace: it forwards datagrams in both
//! directions, loses some and stores those of the agent.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::{namespace::Namespace, notice::print_message, transfer::random_bytes};

/// The timeout of a read at one of the two ends.
const TURN: Duration = Duration::from_millis(1);

/// A proxy between an agent and its manager, at an address of its own.
#[derive(Debug)]
pub struct LossyLink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Of both directions.
    loss_percent: AtomicU32,
    datagrams: Mutex<Vec<Vec<u8>>>,
}

impl LossyLink {
    /// Creates a link from `worker` to `manager`; `seed` decides which datagrams are lost.
    ///
    /// # Errors
    /// When the namespace cannot be entered or has no socket left.
    pub fn create(worker: &Namespace, manager: SocketAddr, seed: u64) -> Result<Self> {
        let (near, far) = worker.enter(|| {
            let near = UdpSocket::bind("127.0.0.1:0")?;
            let far = UdpSocket::bind("0.0.0.0:0")?;
            far.connect(manager)?;
            near.set_read_timeout(Some(TURN))?;
            far.set_read_timeout(Some(TURN))?;
            Ok::<_, std::io::Error>((near, far))
        })??;
        let shared = Arc::new(Shared::default());
        let carrying = Arc::clone(&shared);
        Ok(Self {
            address: near.local_addr()?,
            shared,
            thread: Some(thread::spawn(move || carrying.forward(&near, &far, seed))),
        })
    }

    /// Sets the share of lost datagrams, in percent.
    pub fn set_loss(&self, percent: u32) {
        self.shared.loss_percent.store(percent, Ordering::Relaxed);
    }

    /// Returns the agent's datagrams so far, including the lost ones.
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        self.shared.datagrams().clone()
    }
}

impl Shared {
    fn datagrams(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, near: &UdpSocket, far: &UdpSocket, seed: u64) {
        let mut random = random_bytes(seed, 1 << 16).into_iter().cycle();
        let mut buffer = [0; 2048];
        let mut agent = None;
        while !self.stop.load(Ordering::Relaxed) {
            let loss = self.loss_percent.load(Ordering::Relaxed);
            let mut lost = || {
                random
                    .next()
                    .is_some_and(|byte| u32::from(byte) * 100 / 256 < loss)
            };
            // A datagram that cannot be sent counts as lost.
            if let Ok((length, from)) = near.recv_from(&mut buffer) {
                agent = Some(from);
                self.datagrams().push(buffer[..length].to_vec());
                if !lost() {
                    _ = far.send(&buffer[..length]);
                }
            }
            if let (Ok(length), Some(agent)) = (far.recv(&mut buffer), agent)
                && !lost()
            {
                _ = near.send_to(&buffer[..length], agent);
            }
        }
    }
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            print_message("a lossy link panicked");
        }
    }
}
