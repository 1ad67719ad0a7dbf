//! A manager's query which clients have a connection with a worker, and the agent's reply, in mode `dsr`.
//!
//! A manager that lost its table of connections queries the agents. docs/heartbeat.md specifies both datagrams.

use std::net::SocketAddr;

use lb_core::{Endpoint, Sequence};
use serde::{Deserialize, Serialize};

use super::envelope::{self, DatagramKind, Envelope};
use super::nonce::Nonce;
use super::wire::{self, WireSequence};
use super::{MAX_CLIENTS, Refusal, SIZE_LIMIT, check_size};
use crate::keys::{Key, KeyId};

/// A manager's query which of these clients have a connection with the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionQuery {
    /// The last heartbeat that the manager accepted from the agent. It proves that the query is new.
    pub heartbeat: Sequence,
    /// A random number that identifies the query.
    pub nonce: u64,
    pub service: Endpoint,
    pub clients: Vec<SocketAddr>,
}

/// An agent's reply. It is shorter than the query, so that an agent amplifies no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionReply {
    /// The nonce of the query.
    pub nonce: u64,
    /// Bit `n` is set if the worker has the connection of the query's client `n`.
    pub known_clients: u64,
}

impl ConnectionQuery {
    /// Encodes a query about as many of the clients as one datagram holds, and signs it if there is a key. It removes
    /// the other clients from the query.
    ///
    /// # Errors
    ///
    /// Refuses a query about no client.
    pub fn encode(&mut self, key: Option<&Key>) -> Result<Vec<u8>, Refusal> {
        self.clients.truncate(MAX_CLIENTS);
        loop {
            self.check()?;
            let datagram = self.encode_all(key)?;
            if datagram.len() < SIZE_LIMIT {
                return Ok(datagram);
            }
            self.clients.pop();
        }
    }

    fn encode_all(&self, key: Option<&Key>) -> Result<Vec<u8>, Refusal> {
        let wire = WireConnectionQuery {
            heartbeat: self.heartbeat.into(),
            nonce: Nonce(self.nonce).to_string(),
            service: self.service.to_string(),
            clients: self.clients.clone(),
        };
        envelope::encode(DatagramKind::ConnectionQuery, key, &wire)
    }

    /// Checks the signature, then decodes. With a key, only a signed query counts; without one, only an unsigned one.
    /// Returns `None` if the datagram is no query.
    ///
    /// # Errors
    ///
    /// Returns why it is not valid.
    pub fn decode(datagram: &[u8], key: Option<&Key>) -> Option<Result<Self, Refusal>> {
        DatagramKind::ConnectionQuery
            .is_of(datagram)
            .then(|| Self::decode_query(datagram, key))
    }

    fn decode_query(datagram: &[u8], key: Option<&Key>) -> Result<Self, Refusal> {
        check_size(datagram)?;
        let body = match (key, DatagramKind::ConnectionQuery.unsigned_body(datagram)) {
            (None, Some(body)) => body,
            (Some(_), Some(_)) => return Err(Refusal::Unsigned),
            (key, None) => envelope::signed_body(DatagramKind::ConnectionQuery, datagram, key)?,
        };
        let wire: WireConnectionQuery = serde_json::from_slice(body)?;
        let query = Self {
            heartbeat: wire.heartbeat.parse()?,
            nonce: wire::nonce(&wire.nonce)?.0,
            service: wire.service.parse().map_err(|_| Refusal::Malformed {
                problem: "\"service\" is not an endpoint".to_owned(),
            })?,
            clients: wire.clients,
        };
        query.check()?;
        Ok(query)
    }

    fn check(&self) -> Result<(), Refusal> {
        let clients = self.clients.len();
        match clients {
            1..=MAX_CLIENTS => Ok(()),
            _ => Err(Refusal::AbsurdClients { clients }),
        }
    }
}

impl ConnectionReply {
    /// Encodes it, and signs it if there is a key.
    ///
    /// # Errors
    ///
    /// None: it consists of numbers.
    pub fn encode(&self, key: Option<&Key>) -> Result<Vec<u8>, Refusal> {
        let wire = WireConnectionReply {
            nonce: Nonce(self.nonce).to_string(),
            known_clients: format!("{:016x}", self.known_clients),
        };
        envelope::encode(DatagramKind::ConnectionReply, key, &wire)
    }

    /// Decodes the body of a reply.
    fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let wire: WireConnectionReply = serde_json::from_slice(body)?;
        Ok(Self {
            nonce: wire::nonce(&wire.nonce)?.0,
            known_clients: wire::nonce(&wire.known_clients)?.0,
        })
    }
}

/// Whether a datagram is a connection reply, valid or not.
pub fn is_connection_reply(datagram: &[u8]) -> bool {
    DatagramKind::ConnectionReply.is_of(datagram)
}

/// Checks and decodes a reply. `keys` returns the key of an id; without it, signatures are not verified. Returns the
/// reply and the key that signed it.
pub(super) fn decode_reply<'a>(
    datagram: &[u8],
    keys: Option<impl Fn(KeyId) -> Option<&'a Key>>,
) -> Result<(ConnectionReply, Option<&'a Key>), Refusal> {
    check_size(datagram)?;
    if let Some(body) = DatagramKind::ConnectionReply.unsigned_body(datagram) {
        return Ok((ConnectionReply::decode(body)?, None));
    }
    let envelope = Envelope::parse(DatagramKind::ConnectionReply, datagram)?;
    let Some(keys) = keys else {
        return Ok((ConnectionReply::decode(envelope.body)?, None));
    };
    let id = envelope.key;
    let key = keys(id).ok_or(Refusal::UnknownKey { key: id })?;
    let body = envelope::signed_body(DatagramKind::ConnectionReply, datagram, Some(key))?;
    Ok((ConnectionReply::decode(body)?, Some(key)))
}

#[derive(Serialize, Deserialize)]
struct WireConnectionQuery {
    #[serde(flatten)]
    heartbeat: WireSequence,
    nonce: String,
    service: String,
    clients: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
struct WireConnectionReply {
    nonce: String,
    known_clients: String,
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use lb_core::BootId;
    use zeroize::Zeroizing;

    use super::*;

    fn key(id: u32, secret: u8) -> Key {
        Key::new(
            "worker1".to_owned(),
            KeyId(id),
            &Zeroizing::new([secret; 32]),
        )
    }

    fn query(clients: impl IntoIterator<Item = SocketAddr>) -> ConnectionQuery {
        ConnectionQuery {
            heartbeat: Sequence {
                boot: BootId(0x00c0_ffee),
                number: 17,
            },
            nonce: 0x0123_4567_89ab_cdef,
            service: "192.168.56.101:80".parse().unwrap(),
            clients: clients.into_iter().collect(),
        }
    }

    fn client(number: u8) -> SocketAddr {
        (Ipv4Addr::new(192, 168, 56, number), 40_000).into()
    }

    #[test]
    fn queries_and_replies_have_the_documented_form() {
        let datagram = query([client(10)]).encode(None).unwrap();
        assert_eq!(
            String::from_utf8(datagram).unwrap(),
            "memlb1-connection-query\n{\"boot\":\"0000000000c0ffee\",\"seq\":17,\"nonce\":\"0123456789abcdef\",\
             \"service\":\"192.168.56.101:80/tcp\",\"clients\":[\"192.168.56.10:40000\"]}"
        );
        let reply = ConnectionReply {
            nonce: 1,
            known_clients: 5,
        }
        .encode(None)
        .unwrap();
        assert_eq!(
            String::from_utf8(reply).unwrap(),
            "memlb1-connection-reply\n{\"nonce\":\"0000000000000001\",\"known_clients\":\"0000000000000005\"}"
        );
    }

    #[test]
    fn a_query_has_as_many_clients_as_fit_and_its_reply_is_shorter() {
        let key = key(0xa1, 7);
        let long6 = SocketAddr::from((Ipv6Addr::from([0xfd; 16]), 65_535));
        let long4 = SocketAddr::from((Ipv4Addr::from([255; 4]), 65_535));
        for (client, least) in [(client(10), MAX_CLIENTS), (long4, 38), (long6, 18)] {
            for key in [None, Some(&key)] {
                let mut query = query(vec![client; 100]);
                let datagram = query.encode(key).unwrap();
                assert!(datagram.len() < SIZE_LIMIT);
                assert!(query.clients.len() >= least, "{}", query.clients.len());
                assert_eq!(ConnectionQuery::decode(&datagram, key), Some(Ok(query)));
            }
        }
        for key in [None, Some(&key)] {
            let query = query([client(1)]).encode(key).unwrap();
            let reply = ConnectionReply {
                nonce: u64::MAX,
                known_clients: u64::MAX,
            };
            assert!(reply.encode(key).unwrap().len() < query.len());
        }
        assert_eq!(
            query([]).encode(None),
            Err(Refusal::AbsurdClients { clients: 0 })
        );
    }

    #[test]
    fn an_agent_with_a_key_accepts_its_manager_only() {
        let (own, forged, other) = (key(0xa1, 7), key(0xa1, 8), key(0xa2, 7));
        let refused = |datagram: &[u8], key| match ConnectionQuery::decode(datagram, key) {
            Some(Err(refusal)) => refusal.name(),
            _ => "",
        };
        let mut query = query([client(1)]);
        let signed = query.encode(Some(&forged)).unwrap();
        assert_eq!(refused(&signed, Some(&own)), "bad_signature");
        let signed = query.encode(Some(&other)).unwrap();
        assert_eq!(refused(&signed, Some(&own)), "unknown_key");
        assert_eq!(refused(&signed, None), "unknown_key");
        let unsigned = query.encode(None).unwrap();
        assert_eq!(refused(&unsigned, Some(&own)), "unsigned");
        let signed = query.encode(Some(&own)).unwrap();
        for end in 0..signed.len() {
            assert!(!matches!(
                ConnectionQuery::decode(&signed[..end], Some(&own)),
                Some(Ok(_))
            ));
        }
        // What an agent of an older version receives is no acknowledgement and no pong.
        assert!(super::super::Acknowledgement::decode(&signed, &own).is_err());
        assert!(super::super::Pong::decode(&unsigned, None).is_err());
    }

    #[test]
    fn reply_needs_a_known_key() {
        let own = key(0xa1, 7);
        let known = |id| (id == own.id()).then_some(&own);
        let reply = ConnectionReply {
            nonce: 9,
            known_clients: 1,
        };
        let decode = |datagram: &[u8]| match decode_reply(datagram, Some(known)) {
            Ok((decoded, key)) => {
                assert_eq!(decoded, reply);
                key.map_or("unsigned", Key::worker)
            }
            Err(refusal) => refusal.name(),
        };
        for (key, expected) in [
            (Some(&own), "worker1"),
            (Some(&key(0xa1, 8)), "bad_signature"),
            (Some(&key(0xa2, 7)), "unknown_key"),
            (None, "unsigned"),
        ] {
            let datagram = reply.encode(key).unwrap();
            assert!(is_connection_reply(&datagram));
            assert_eq!(decode(&datagram), expected);
        }
    }

    #[test]
    fn refuses_a_malformed_query() {
        let text = |boot: &str, nonce: &str, service: &str, clients: &str| {
            format!(
                "memlb1-connection-query\n{{\"boot\":{boot},\"seq\":1,\"nonce\":{nonce},\"service\":{service},\
                 \"clients\":{clients}}}"
            )
        };
        let (number, service, some) = (
            "\"0123456789abcdef\"",
            "\"10.0.0.1:80\"",
            "[\"10.0.0.9:1\"]",
        );
        let many = format!("[{}]", vec!["\"1.1.1.1:1\""; 46].join(","));
        for (query, reason) in [
            (text("\"12\"", number, service, some), "bad_boot"),
            (text(number, "\"12\"", service, some), "bad_nonce"),
            (text(number, number, "\"web\"", some), "malformed"),
            (text(number, number, service, "[\"web\"]"), "malformed"),
            (text(number, number, service, "[]"), "absurd_clients"),
            (text(number, number, service, &many), "absurd_clients"),
            ("memlb1-connection-query\nnonsense".to_owned(), "not_json"),
        ] {
            let refused = ConnectionQuery::decode(query.as_bytes(), None)
                .unwrap()
                .unwrap_err();
            assert_eq!(refused.name(), reason, "{query}");
        }
        assert_eq!(ConnectionQuery::decode(b"memlb1-connection-qu", None), None);
    }
}
