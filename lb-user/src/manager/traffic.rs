//! What the packets say of the workers: counters for the core, and trials of failing workers.

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

/// How often the counters are read: a dead server is noticed within this time after its third refusal.
pub(super) const TRAFFIC_INTERVAL: Duration = Duration::from_millis(250);

/// Counters of this age are good enough to say that a worker answered after its last heartbeat.
const FRESH: Duration = Duration::from_millis(50);

/// How long a trial waits for an answer.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the ICMP error of a closed UDP port may take.
const UDP_TIMEOUT: Duration = Duration::from_millis(300);

impl Manager {
    /// Reads the counters before a worker's deadline, unless they were read just now: many workers may fall silent one
    /// after the other.
    pub(super) fn read_traffic_again(&mut self, now: Instant) {
        if now.saturating_duration_since(self.traffic_read) >= FRESH {
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
            let results = self.background.results();
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
        self.configuration
            .settings
            .services
            .iter()
            .find_map(|service| {
                let mut backends = service.backends.iter();
                let found = backends.find(|it| it.id == backend)?;
                Some((found.address, service.protocol))
            })
    }
}

/// Opens a connection, and closes it. A UDP server is sent an empty datagram: only an ICMP error says that there is
/// none.
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
    async fn a_trial_sees_an_open_and_a_closed_port() {
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
