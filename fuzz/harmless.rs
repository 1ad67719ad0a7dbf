//! The invariants of datagrams, for the fuzz target and for the test with its corpus.

use std::{net::SocketAddr, time::Instant};

use memlb::{
    heartbeat::{
        Acknowledgement, Authentication, Authenticator, ConnectionQuery, Decoded, MAX_CLIENTS,
        MAX_NAME_BYTES, Refusal, SIZE_LIMIT, check_name, decode,
    },
    keys::{Key, KeyId, KeyRing},
};
use zeroize::Zeroizing;

/// The worker of the corpus; its key signs everything.
const WORKER: &str = "worker1";

/// Decodes a datagram in every way that a manager or an agent uses, and checks the results.
///
/// # Panics
///
/// If an invariant does not hold.
pub fn check(datagram: &[u8]) {
    for legacy in [false, true] {
        match decode(datagram, legacy) {
            Ok(decoded) => check_decoded(&decoded, datagram, legacy),
            Err(refusal) => check_refusal(&refusal),
        }
    }
    let key = key();
    assert!(
        Acknowledgement::decode(datagram, &key).is_err(),
        "an acknowledgement was forged"
    );
    check_query(datagram, &key);
    let mut authenticator = authenticator(&key);
    let from = SocketAddr::from(([192, 0, 2, 1], 9));
    let answer = authenticator.verify_connection_reply(datagram, from, Instant::now());
    check_refusal(&answer.expect_err("an answer was forged"));
    let refused = authenticator
        .verify(datagram, from, Instant::now())
        .expect_err("a heartbeat was forged");
    check_refusal(&refused.refusal);
    assert_eq!(refused.reply, None, "an unsigned datagram was answered");

    // As if the worker itself had sent it.
    let mut signed = Vec::from("memlb1 000000a1 ");
    for byte in key.sign(&[b"memlb1 ", b"000000a1", b"\n", datagram]) {
        signed.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    signed.push(b'\n');
    signed.extend_from_slice(datagram);
    let refused = authenticator
        .verify(&signed, from, Instant::now())
        .expect_err("the nonce was guessed");
    check_refusal(&refused.refusal);
    if let Some(challenge) = refused.reply {
        assert_eq!(refused.refusal, Refusal::NotFresh);
        assert!(challenge.len() < signed.len(), "the answer amplifies");
        assert!(Acknowledgement::decode(&challenge, &key).is_ok());
    }
}

/// Decodes a datagram as a manager's query for connections.
fn check_query(datagram: &[u8], key: &Key) {
    assert!(
        !matches!(ConnectionQuery::decode(datagram, Some(key)), Some(Ok(_))),
        "a query was forged"
    );
    match ConnectionQuery::decode(datagram, None) {
        None => {}
        Some(Err(refusal)) => check_refusal(&refusal),
        Some(Ok(mut query)) => {
            assert!((1..=MAX_CLIENTS).contains(&query.clients.len()));
            let clients = query.clients.clone();
            let again = query.encode(None).expect("what was accepted can be sent");
            assert!(again.len() < SIZE_LIMIT && clients.starts_with(&query.clients));
            assert_eq!(ConnectionQuery::decode(&again, None), Some(Ok(query)));
        }
    }
}

fn key() -> Key {
    let secret = Zeroizing::new([0xfb; 32]);
    Key::new(WORKER.to_owned(), KeyId(0xa1), &secret)
}

fn authenticator(key: &Key) -> Authenticator {
    let mut keys = KeyRing::default();
    keys.add(key.clone(), "here").expect("the only key");
    Authenticator::new(Authentication::Enforce, false, keys, Instant::now())
        .expect("an authenticator")
}

fn check_decoded(decoded: &Decoded, datagram: &[u8], legacy: bool) {
    assert!(datagram.len() < SIZE_LIMIT);
    let Some(report) = decoded.report() else {
        return assert!(
            legacy,
            "only the 2018 format has datagrams without a report"
        );
    };
    assert_eq!(check_name(&report.worker), Ok(()));
    assert!(report.worker.len() <= MAX_NAME_BYTES);
    let total = report.memory.total_bytes.unwrap_or(u64::MAX);
    assert!(total > 0 && report.memory.available_bytes <= total);
    assert!(report.pressure.is_none_or(|share| share.0 <= 10_000));
    if let Decoded::Heartbeat(heartbeat) = decoded {
        assert!(!heartbeat.to_string().contains(char::is_control));
        // A decoded message can be encoded, and decodes to the same message.
        let again = heartbeat.encode().expect("what was accepted can be sent");
        assert_eq!(decode(&again, false).as_ref(), Ok(decoded));
    }
}

fn check_refusal(refusal: &Refusal) {
    let shown = refusal.to_string();
    assert!(
        !shown.contains(char::is_control) && shown.len() < 500,
        "{shown:?}"
    );
    let name = refusal.name();
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    );
}
