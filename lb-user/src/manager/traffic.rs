//! Passes the packet programs' counters to the core, and tries failing workers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::warn;

use super::{Manager, background::BackgroundResult};
use lb_core::{BackendId, Protocol, TrialOutcome};

/// How often the counters are read. A dead server is detected within this time after its third refusal.
pub(super) const TRAFFIC_INTERVAL: Duration = Duration::from_millis(250);

/// Counters of this age still show whether a worker answered after its last heartbeat.
const MAX_AGE: Duration = Duration::from_millis(50);

/// How long a trial waits for an answer.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a trial waits for the ICMP error of a closed UDP port.
const UDP_TIMEOUT: Duration = Duration::from_millis(300);

impl Manager {
    /// Reads the counters at a worker's deadline, unless they are fresh: many workers may fall silent one after the
    /// other.
    pub(super) fn read_traffic_again(&mut self, now: Instant) {
        if now.saturating_duration_since(self.traffic_read) >= MAX_AGE {
            self.read_traffic();
        }
    }

    /// Passes the counters of handshakes to the core.
    pub(super) fn read_traffic(&mut self) {
        self.traffic_read = Instant::now();
        match self.datapath.traffic() {
            Ok(counters) => self.core.handle_traffic(counters, Instant::now()),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Begins the trials of failing workers that are due.
    pub(super) fn begin_trials(&mut self) {
        while let Some(backend) = self.core.poll_trial() {
            let Some((address, protocol)) = self.endpoint_of(backend) else {
                continue;
            };
            let results = self.background.results.clone();
            tokio::spawn(async move {
                let outcome = try_backend(address, protocol).await;
                // Fails only when the manager ends.
                _ = results
                    .send(BackgroundResult::Trial(backend, outcome))
                    .await;
            });
        }
    }

    fn endpoint_of(&self, backend: BackendId) -> Option<(SocketAddr, Protocol)> {
        let mut services = self.configuration.settings.services.iter();
        services.find_map(|service| {
            let mut backends = service.backends.iter();
            let found = backends.find(|it| it.id == backend)?;
            Some((found.address, service.protocol))
        })
    }
}

/// Opens a connection and closes it. Over UDP, it sends an empty datagram, and only an ICMP error counts as a failure.
async fn try_backend(address: SocketAddr, protocol: Protocol) -> TrialOutcome {
    let is_answered = match protocol {
        Protocol::Tcp => {
            let connected = timeout(TRIAL_TIMEOUT, TcpStream::connect(address)).await;
            matches!(connected, Ok(Ok(_)))
        }
        Protocol::Udp => !is_refused_by_udp(address).await,
    };
    match is_answered {
        true => TrialOutcome::Answered,
        false => TrialOutcome::Failed,
    }
}

async fn is_refused_by_udp(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let attempt = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        socket.send(&[]).await?;
        match timeout(UDP_TIMEOUT, socket.recv(&mut [0])).await {
            Ok(received) => received.map(|_| ()),
            Err(_) => Ok(()),
        }
    };
    let result: std::io::Result<()> = attempt.await;
    result.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trial_distinguishes_open_and_closed_ports() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let outcome = try_backend(address, Protocol::Tcp).await;
        assert_eq!(outcome, TrialOutcome::Answered);
        drop(server);
        let outcome = try_backend(address, Protocol::Tcp).await;
        assert_eq!(outcome, TrialOutcome::Failed);

        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let outcome = try_backend(address, Protocol::Udp).await;
        assert_eq!(outcome, TrialOutcome::Answered);
        drop(server);
        let outcome = try_backend(address, Protocol::Udp).await;
        assert_eq!(outcome, TrialOutcome::Failed);
    }
}
