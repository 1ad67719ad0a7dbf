//! Probes addresses by TCP connections.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};

/// Longer than the time after which the kernel repeats the SYN, and shorter than that of the third SYN.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    Connected(Duration),
    /// The host answers that no server listens.
    Refused,
    /// No answer at all.
    Silent,
    /// The connection could not be attempted, and why.
    Failed(String),
}

/// Connects to each address once, to all at the same time.
pub async fn connect(
    addresses: impl IntoIterator<Item = SocketAddr>,
) -> BTreeMap<SocketAddr, Attempt> {
    let attempts = addresses
        .into_iter()
        .map(async |address| (address, attempt(address).await));
    join_all(attempts).await.into_iter().collect()
}

async fn attempt(address: SocketAddr) -> Attempt {
    let begun = Instant::now();
    match timeout(TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Attempt::Connected(begun.elapsed()),
        Err(_) => Attempt::Silent,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => Attempt::Refused,
            // The kernel gave up resolving the neighbour.
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => Attempt::Silent,
            _ => Attempt::Failed(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn reports_a_refusal_from_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = gone.local_addr().unwrap();
        drop(gone);
        let attempts = connect([open, closed]).await;
        assert!(matches!(attempts[&open], Attempt::Connected(_)));
        assert_eq!(attempts[&closed], Attempt::Refused);
    }
}
