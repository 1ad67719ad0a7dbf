use std::net::IpAddr;

use lb_core::{Endpoint, Mode, Protocol};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{message::BackendDefinition, *};
use crate::{
    config::Identity,
    keys::{Key, KeyId, PeerKeys, SigningKey},
};

fn key(id: u32, secret: u8) -> SigningKey {
    SigningKey::new(KeyId(id), &Zeroizing::new([secret; 32]))
}

fn keys(id: u32, secret: u8) -> PeerKeys {
    PeerKeys::single(key(id, secret))
}

fn hello() -> Hello {
    Hello {
        protocols: (1, 1),
        nonce: [1; 16],
        echoed_nonce: [0; 16],
        epoch: 1_700_000_000_000,
        name: "manager1".to_owned(),
        version: "0.1.0".to_owned(),
        advertisement: Advertisement {
            digest: [7; 32],
            nat_sources: vec![[10, 0, 1, 1].into(), "2001:db8::1".parse().unwrap()],
            interfaces: vec![[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            serving: 4,
        },
    }
}

fn session() -> (FrameSigner, FrameVerifier) {
    let derive = || SessionKeys::derive(&key(1, 9), b"one", b"other");
    (
        derive().of(Role::Connector).0,
        derive().of(Role::Listener).1,
    )
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 15]>().prop_map(|rest| {
            let mut octets = [0x20; 16];
            octets[1..].copy_from_slice(&rest);
            IpAddr::from(octets)
        }),
    ]
}

prop_compose! {
    fn record()(
        kind in prop_oneof![
            Just(RecordKind::Opened), Just(RecordKind::Ended), Just(RecordKind::Present)
        ],
        ended in [0u8..8, 0u8..8],
        carried: bool,
        references: [u16; 3],
        client in address(),
        ports: [u16; 2],
        ages: [u32; 2],
        interface: u8,
        mac: [u8; 6],
        tag: u16,
        sequences: [u32; 2],
    ) -> Record {
        let [backend, service, source] = references;
        let live = LiveFields { interface, mac, tag, seen_age: ages[1], sequences };
        Record {
            kind,
            ended,
            carried,
            backend,
            service,
            source,
            client,
            client_port: ports[0],
            source_port: ports[1],
            created_age: ages[0],
            live: if kind == RecordKind::Ended { LiveFields::default() } else { live },
        }
    }
}

fn message() -> impl Strategy<Value = Message> {
    let backend =
        (any::<u16>(), address(), any::<[u16; 2]>()).prop_map(|(reference, ip, ports)| {
            let endpoint = |port| Endpoint {
                address: (ip, port).into(),
                protocol: Protocol::Udp,
            };
            BackendDefinition {
                reference,
                identity: Identity {
                    endpoint: endpoint(ports[0]),
                    mode: Mode::Routed,
                    service: Some(endpoint(ports[1])),
                },
            }
        });
    let endpoint = (any::<u16>(), address(), any::<u16>());
    let endpoint = endpoint.prop_map(|(reference, ip, port)| (reference, (ip, port).into()));
    let scope = prop_oneof![Just(Scope::Full), Just(Scope::Carried)];
    prop_oneof![
        prop::collection::vec(record(), 0..40).prop_map(Message::Records),
        prop::collection::vec(backend, 0..9).prop_map(Message::Backends),
        prop::collection::vec(endpoint, 0..9).prop_map(Message::Endpoints),
        any::<u64>().prop_map(Message::Acknowledge),
        scope
            .clone()
            .prop_map(|it| Message::Resync(Resync::Begun(it))),
        scope
            .clone()
            .prop_map(|it| Message::Resync(Resync::Finished(it))),
        scope.prop_map(|it| Message::Resync(Resync::Partial(it))),
        Just(Message::Resync(Resync::Requested)),
        Just(Message::Ping),
        Just(Message::Advertisement(hello().advertisement)),
        prop::collection::vec(any::<u8>(), 0..99).prop_map(Message::Orders),
    ]
}

proptest! {
    #[test]
    fn frames_round_trip(messages in prop::collection::vec(message(), 1..9)) {
        let (mut signer, mut verifier) = session();
        let mut bytes = Vec::new();
        for message in &messages {
            message.sign(&mut signer, &mut bytes);
        }
        let mut rest = bytes.as_slice();
        for (message, number) in messages.iter().zip(0..) {
            let (frame, length) = verifier.verify(rest).unwrap().unwrap();
            prop_assert_eq!(frame.sequence, number);
            let read = Message::decode(&frame).unwrap();
            prop_assert_eq!(read.as_ref(), Some(message));
            // Nothing is read of a frame that has not come as a whole.
            prop_assert_eq!(session().1.verify(&rest[..length - 1]), Ok(None));
            rest = &rest[length..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_changed_frame_is_refused(message in message(), at: prop::sample::Index, bit in 0..8) {
        let (mut signer, mut verifier) = session();
        let mut bytes = Vec::new();
        message.sign(&mut signer, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        // A longer length only makes it wait, and a later byte then shows it.
        bytes.resize(MAX_FRAME, 0);
        prop_assert!(verifier.verify(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), kind: u8, count: u16) {
        prop_assert!(!matches!(session().1.verify(&bytes), Ok(Some(_))));
        let frame = Frame { kind, version: 1, count, sequence: 0, content: &bytes };
        if let Ok(Some(message)) = Message::decode(&frame) {
            // What is understood can be said again, and means the same then.
            let (mut signer, mut verifier) = session();
            let mut again = Vec::new();
            message.sign(&mut signer, &mut again);
            let (frame, _) = verifier.verify(&again).unwrap().unwrap();
            prop_assert_eq!(Message::decode(&frame).unwrap(), Some(message));
        }
        let own = keys(1, 9);
        prop_assert!(Hello::verify(&bytes, Role::Connector, |_| Ok(&own)).is_err());
    }

    #[test]
    fn a_changed_hello_is_refused(at: prop::sample::Index, bit in 0..8) {
        let own = keys(1, 9);
        let mut bytes = hello().sign(Role::Connector, own.signing());
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(Hello::verify(&bytes, Role::Connector, |_| Ok(&own)).is_err());
    }
}

#[test]
fn records_have_the_documented_sizes() {
    let sizes = |client: IpAddr| {
        [RecordKind::Opened, RecordKind::Present, RecordKind::Ended].map(|kind| {
            let mut bytes = Vec::new();
            let record = Record {
                kind,
                ended: [0; 2],
                carried: true,
                backend: 1,
                service: 1,
                source: 2,
                client,
                client_port: 40_000,
                source_port: 2_000,
                created_age: 5,
                live: LiveFields::default(),
            };
            record.encode(&mut bytes);
            bytes.len()
        })
    };
    assert_eq!(sizes([192, 0, 2, 1].into()), [41, 41, 20]);
    assert_eq!(sizes("2001:db8::1".parse().unwrap()), [53, 53, 32]);
}

#[test]
fn a_hello_names_its_sender_and_its_role() {
    let own = keys(1, 9);
    let bytes = hello().sign(Role::Connector, own.signing());
    assert_eq!(Hello::length(&bytes), Ok(Some(bytes.len())));
    assert_eq!(Hello::length(&bytes[..9]), Ok(None));
    let open = |role, keys: &PeerKeys| Hello::verify(&bytes, role, |_| Ok(keys)).map(|it| it.0);
    assert_eq!(open(Role::Connector, &own), Ok(hello()));
    assert_eq!(open(Role::Listener, &own), Err(PeerRefusal::BadSignature));
    assert_eq!(
        open(Role::Connector, &keys(2, 9)),
        Err(PeerRefusal::OtherKey)
    );
    assert_eq!(
        open(Role::Connector, &keys(1, 8)),
        Err(PeerRefusal::BadSignature)
    );
    let unknown = PeerRefusal::UnknownPeer {
        name: "manager1".to_owned(),
    };
    let opened = Hello::verify(&bytes, Role::Connector, |name| {
        Err(PeerRefusal::UnknownPeer {
            name: name.to_owned(),
        })
    });
    assert_eq!(opened.map(|it| it.0), Err(unknown));
    assert_eq!(Hello::length(b"GET / HTTP/1.1"), Err(PeerRefusal::NotHello));
    let long = [b"memlbp1\n".as_slice(), &[0xff; 2]].concat();
    assert_eq!(
        Hello::length(&long),
        Err(PeerRefusal::OversizedHello { bytes: 65_545 })
    );
}

/// A worker whose key has the very same secret still signs no hello, and a peer no heartbeat.
#[test]
fn signature_is_valid_for_its_purpose_only() {
    let secret = Zeroizing::new([9; 32]);
    let worker = Key::new("worker1".to_owned(), KeyId(1), &secret);
    let own = keys(1, 9);
    let mut bytes = hello().sign(Role::Connector, own.signing());
    let body = bytes.len() - 32;
    let tag = worker.sign(&[b"memlb1 ", b"00000001", b"\n", &bytes[..body]]);
    bytes[body..].copy_from_slice(&tag);
    let opened = Hello::verify(&bytes, Role::Connector, |_| Ok(&own));
    assert_eq!(opened.map(|it| it.0), Err(PeerRefusal::BadSignature));
}

#[test]
fn a_frame_is_accepted_once_in_its_place_and_its_session() {
    let (mut signer, mut verifier) = session();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    Message::Ping.sign(&mut signer, &mut first);
    Message::Ping.sign(&mut signer, &mut second);
    // One is left out.
    assert_eq!(session().1.verify(&second), Err(PeerRefusal::Replayed));
    assert!(verifier.verify(&first).unwrap().is_some());
    // It comes again.
    assert_eq!(verifier.verify(&first), Err(PeerRefusal::Replayed));
    let other = SessionKeys::derive(&key(1, 9), b"another", b"other");
    let mut other = other.of(Role::Listener).1;
    assert_eq!(other.verify(&first), Err(PeerRefusal::BadSignature));
    // It comes back to its sender.
    let mut sender = SessionKeys::derive(&key(1, 9), b"one", b"other")
        .of(Role::Connector)
        .1;
    assert_eq!(sender.verify(&first), Err(PeerRefusal::BadSignature));
}

#[test]
fn frames_of_later_versions_are_skipped() {
    let frame = |kind, version| Frame {
        kind,
        version,
        count: 900,
        sequence: 0,
        content: b"what nobody knows yet",
    };
    assert_eq!(Message::decode(&frame(99, 1)), Ok(None));
    assert_eq!(Message::decode(&frame(1, 2)), Ok(None));
    let malformed = Err(PeerRefusal::Malformed { kind: 1 });
    assert_eq!(Message::decode(&frame(1, 1)), malformed);
    let refused = common_protocol((2, 3)).unwrap_err();
    assert_eq!(refused, PeerRefusal::Protocol { first: 2, last: 3 });
    assert_eq!(
        refused.to_string(),
        "it speaks versions 2 to 3 of the peers' protocol, and this manager 1 to 1: upgrade the older one"
    );
    assert_eq!(common_protocol((1, 5)), Ok(1));
}

#[test]
fn lengths_are_bounded() {
    let (_, mut verifier) = session();
    for length in [0, 27, MAX_FRAME as u32 - 3, u32::MAX] {
        let bytes = length.to_be_bytes();
        let refused = verifier.verify(&bytes);
        assert!(
            matches!(refused, Err(PeerRefusal::BadLength { .. })),
            "{length}"
        );
    }
    assert_eq!(verifier.verify(&(28_u32).to_be_bytes()), Ok(None));
    assert_eq!(
        verifier.verify(&(MAX_FRAME as u32 - 4).to_be_bytes()),
        Ok(None)
    );
}
