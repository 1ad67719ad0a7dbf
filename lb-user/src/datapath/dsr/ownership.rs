//! Answers which connections this worker has, for a manager that lost its connection table.

use std::net::SocketAddr;

use lb_core::{Endpoint, Protocol};
use tracing::debug;

use super::{DsrTranslator, tables::KnownClient};
use crate::sock_diag::{SockDiag, TcpSocket};

impl DsrTranslator {
    /// Returns which of these clients have a connection of this service with the worker: bit `n` for client `n`.
    ///
    /// Checks the translator's entries and the server's sockets: the entries may be evicted, and the sockets may be in
    /// another network namespace. A false positive does no harm: the worker answers the client's packet with a RST.
    pub fn own_connections(&self, service: Endpoint, clients: &[SocketAddr]) -> u64 {
        let Some(target) = self.tables.target(service) else {
            return 0;
        };
        let opened = (service.protocol == Protocol::Tcp).then(SockDiag::open);
        let opened = opened.transpose();
        let sockets = opened.inspect_err(|error| debug!("open sock_diag: {error}"));
        let sockets = sockets.ok().flatten();
        let socket_of = |client| {
            let found = sockets.as_ref()?.tcp(target, client);
            found
                .inspect_err(|error| debug!("look up the socket of {client}: {error}"))
                .ok()
        };
        let mut own = 0;
        for (bit, client) in clients.iter().enumerate().take(u64::BITS as usize) {
            let known = match client.is_ipv4() == target.is_ipv4() {
                true => self.tables.client(service, target, *client),
                false => KnownClient::Elsewhere,
            };
            if is_own(known, || socket_of(*client)) {
                own |= 1 << bit;
            }
        }
        own
    }
}

/// Decides by the translator's entry and the kernel's socket; `socket` returns `None` if the kernel does not answer.
fn is_own(known: KnownClient, socket: impl FnOnce() -> Option<TcpSocket>) -> bool {
    if known == KnownClient::Elsewhere {
        return false;
    }
    match socket() {
        Some(TcpSocket::Connected) => true,
        // The server is here, and has no such connection.
        Some(TcpSocket::Listener) => false,
        Some(TcpSocket::None) | None => known == KnownClient::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_has_precedence_over_the_map_entry() {
        use KnownClient::{Elsewhere, Open, Unknown};
        use TcpSocket::{Connected, Listener};
        for (known, socket, expected) in [
            (Open, Some(Connected), true),
            (Open, Some(Listener), false),
            (Open, Some(TcpSocket::None), true),
            (Open, None, true),
            (Unknown, Some(Connected), true),
            (Unknown, Some(Listener), false),
            (Unknown, Some(TcpSocket::None), false),
            (Unknown, None, false),
            (Elsewhere, Some(Connected), false),
        ] {
            assert_eq!(is_own(known, || socket), expected, "{known:?} {socket:?}");
        }
    }
}
