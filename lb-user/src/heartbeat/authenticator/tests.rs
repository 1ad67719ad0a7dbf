//! Forged, recorded, damaged and genuine datagrams, and which of them pass.

use lb_core::BootId;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::heartbeat::{Nonce, Pong};

const FROM: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 56, 103)),
    40_000,
);

fn key(worker: &str, id: u32) -> Key {
    let secret = Zeroizing::new([id as u8 ^ 0x5a; 32]);
    Key::new(worker.to_owned(), KeyId(id), &secret)
}

fn heartbeat(worker: &str, boot: u64, seq: u64, nonce: Option<Nonce>) -> Heartbeat {
    Heartbeat {
        worker: worker.to_owned(),
        boot: BootId(boot),
        seq,
        nonce,
        ..crate::heartbeat::tests::heartbeat()
    }
}

/// A manager's authenticator, with a clock of its own.
struct Fixture {
    authenticator: Authenticator,
    now: Instant,
}

impl Fixture {
    fn new(authentication: Authentication) -> Self {
        let now = Instant::now();
        Self {
            authenticator: Authenticator::new(authentication, false, ring(), now).unwrap(),
            now,
        }
    }

    fn advance(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn nonce(&self) -> Option<Nonce> {
        Some(self.authenticator.nonces.of(FROM.ip()))
    }

    fn verify(&mut self, datagram: &[u8]) -> Result<Verified, Refused> {
        let result = self.authenticator.verify(datagram, FROM, self.now);
        if result.is_err() {
            self.authenticator.record_refused(FROM, self.now);
        }
        result
    }

    fn refusal(&mut self, datagram: &[u8]) -> &'static str {
        self.verify(datagram).expect_err("refused").refusal.name()
    }

    /// Verifies a datagram that must pass, and returns the authenticator's acknowledgement.
    fn receive(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let verified = self.verify(datagram).expect("a good heartbeat");
        self.accept(&verified)
    }

    fn accept(&mut self, verified: &Verified) -> Option<Vec<u8>> {
        self.authenticator.record_accepted(verified, FROM, self.now)
    }

    fn signed(&self, key: &Key, seq: u64) -> Vec<u8> {
        let heartbeat = heartbeat(key.worker(), 1, seq, self.nonce());
        heartbeat.encode_signed(key).expect("a good heartbeat")
    }
}

fn sequence(boot: u64, number: u64) -> Sequence {
    Sequence {
        boot: BootId(boot),
        number,
    }
}

fn ring() -> KeyRing {
    let mut keys = KeyRing::default();
    for key in [
        key("worker1", 0xa1),
        key("worker1", 0xa2),
        key("worker2", 0xb1),
    ] {
        keys.add(key, "here").unwrap();
    }
    keys
}

#[test]
fn signed_heartbeat_has_exactly_these_bytes() {
    let nonce = Some(Nonce(0x0123_4567_89ab_cdef));
    let datagram = heartbeat("worker1", 0x00c0_ffee_00c0_ffee, 17, nonce)
        .encode_signed(&key("worker1", 0xa1))
        .unwrap();
    // The tag was computed by another implementation (Python's) over
    // "memlb1 000000a1\n" and the JSON, with 32 times 0xfb as the key.
    assert_eq!(
        str::from_utf8(&datagram),
        Ok(concat!(
            "memlb1 000000a1 ",
            "e53ce1a0d51c1976cfa07ddc2404cc535ed4c90aba315ad67d81ad5edf5c5c7e\n",
            r#"{"memlb":1,"worker":"worker1","boot":"00c0ffee00c0ffee","seq":17,"interval_ms":100,"#,
            r#""memory":{"available_bytes":413138944,"total_bytes":734003200},"#,
            r#""state":"ready","healthy":true,"version":"0.1.0","nonce":"0123456789abcdef"}"#
        ))
    );
}

#[test]
fn both_keys_of_a_worker_are_valid() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    for id in [0xa1, 0xa2] {
        let datagram = fixture.signed(&key("worker1", id), 1);
        let verified = fixture.verify(&datagram).expect("a good heartbeat");
        assert_eq!(
            verified.signature.map(|signature| signature.key),
            Some(KeyId(id))
        );
    }
    // Until one is withdrawn.
    let mut keys = KeyRing::default();
    keys.add(key("worker1", 0xa2), "here").unwrap();
    fixture
        .authenticator
        .reconfigure(Authentication::Enforce, false, keys);
    let datagram = fixture.signed(&key("worker1", 0xa1), 2);
    assert_eq!(fixture.refusal(&datagram), "unknown_key");
    let datagram = fixture.signed(&key("worker1", 0xa2), 2);
    assert!(fixture.verify(&datagram).is_ok());
}

#[test]
fn forgeries_are_refused_by_their_reasons() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let good = fixture.signed(&key("worker1", 0xa1), 1);
    let text = String::from_utf8(good.clone()).unwrap();
    let foreign = heartbeat("worker2", 1, 1, fixture.nonce());
    let outsider = Key::new("worker1".to_owned(), KeyId(0xa1), &Zeroizing::new([7; 32]));
    let unsigned = heartbeat("worker1", 1, 1, fixture.nonce())
        .encode()
        .unwrap();
    let with = |piece: &str, other: &str| text.replacen(piece, other, 1).into_bytes();
    let own = key("worker1", 0xa1);
    let twice = super::super::envelope::sign(DatagramKind::Heartbeat, &own, &good);
    let acknowledgement = Acknowledgement {
        heartbeat: sequence(1, 1),
        nonce: Nonce(1),
        fresh: true,
        new_boot: false,
    };
    let echo = acknowledgement.encode(&own).unwrap();
    for (datagram, reason) in [
        (unsigned, "unsigned"),
        (Vec::new(), "unsigned"),
        (b"[{}]".to_vec(), "unsigned"),
        (b"memlb1 ".to_vec(), "bad_envelope"),
        (with("000000a1 ", "000000A1 "), "bad_envelope"),
        (with("000000a1 ", "a1 "), "bad_envelope"),
        (with("\n", "\r\n"), "bad_envelope"),
        (with("\n", " "), "bad_envelope"),
        (good[..50].to_vec(), "bad_envelope"),
        (with("000000a1 ", "000000c1 "), "unknown_key"),
        (with("000000a1", "000000a2"), "bad_signature"),
        (fixture.signed(&outsider, 1), "bad_signature"),
        (good[..good.len() - 1].to_vec(), "bad_signature"),
        ([&good[..], b" "].concat(), "bad_signature"),
        (with("\"seq\":1", "\"seq\":2"), "bad_signature"),
        (with("worker1", "worker2"), "bad_signature"),
        // Signed twice over.
        (twice, "not_json"),
        // An acknowledgement sent back.
        (echo, "unsigned"),
        (foreign.encode_signed(&own).unwrap(), "other_workers_key"),
        ([&good[..], &[b' '; 1_200]].concat(), "oversized"),
    ] {
        let refused = fixture.verify(&datagram).expect_err("refused");
        let datagram = String::from_utf8_lossy(&datagram);
        assert_eq!(refused.refusal.name(), reason, "{datagram}");
        assert_eq!(refused.reply, None, "answers {reason}");
        assert!(!refused.refusal.to_string().contains(char::is_control));
    }
    assert!(fixture.verify(&good).is_ok());
}

#[test]
fn every_single_flipped_bit_is_noticed() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let good = fixture.signed(&key("worker1", 0xa1), 1);
    for bit in 0..good.len() * 8 {
        let mut forged = good.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(fixture.verify(&forged).is_err(), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(fixture.verify(&good[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn a_first_heartbeat_is_challenged_and_the_next_one_counts() {
    for mode in [Authentication::Enforce, Authentication::Permissive] {
        let mut fixture = Fixture::new(mode);
        let key = key("worker1", 0xa1);
        let first = heartbeat("worker1", 1, 1, None)
            .encode_signed(&key)
            .unwrap();
        let refused = fixture.verify(&first).expect_err("not fresh");
        assert_eq!(refused.refusal, Refusal::NotFresh);
        let reply = refused.reply.expect("an answer");
        assert!(reply.len() < first.len(), "amplifies");
        let answer = Acknowledgement::decode(&reply, &key).expect("a signed answer");
        assert_eq!(answer.heartbeat, sequence(1, 1));
        assert!(!answer.fresh);

        let second = heartbeat("worker1", 1, 2, Some(answer.nonce));
        let answer = fixture
            .receive(&second.encode_signed(&key).unwrap())
            .expect("an answer");
        let answer = Acknowledgement::decode(&answer, &key).expect("a signed answer");
        assert_eq!((answer.heartbeat.number, answer.fresh), (2, true));
    }
}

#[test]
fn replay_from_before_a_restart_of_the_manager_is_refused() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let recorded = fixture.signed(&key("worker1", 0xa1), 1);
    assert!(fixture.verify(&recorded).is_ok());
    let mut restarted = Fixture::new(Authentication::Enforce);
    assert_eq!(restarted.refusal(&recorded), "not_fresh");
    fixture.advance(10);
    assert!(fixture.verify(&recorded).is_ok());
    fixture.advance(10);
    assert_eq!(fixture.refusal(&recorded), "not_fresh");
}

#[test]
fn replay_from_another_address_is_refused() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let recorded = fixture.signed(&key("worker1", 0xa1), 1);
    let thief = SocketAddr::from(([192, 168, 56, 66], 40_000));
    let refused = fixture.authenticator.verify(&recorded, thief, fixture.now);
    assert_eq!(refused.expect_err("not fresh").refusal, Refusal::NotFresh);
    // The agent itself may come from another port.
    let restarted = SocketAddr::new(FROM.ip(), 40_001);
    assert!(
        fixture
            .authenticator
            .verify(&recorded, restarted, fixture.now)
            .is_ok()
    );
}

#[test]
fn answers_once_a_second_and_whenever_the_nonce_ages() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let key = key("worker1", 0xa1);
    let datagram = fixture.signed(&key, 1);
    assert!(fixture.receive(&datagram).is_some());
    fixture.now += Duration::from_millis(999);
    assert!(fixture.receive(&datagram).is_none());
    fixture.now += Duration::from_millis(1);
    assert!(fixture.receive(&datagram).is_some());
    fixture.advance(9);
    for _ in 0..3 {
        let answer = fixture
            .receive(&datagram)
            .expect("an answer to the older nonce");
        let answer = Acknowledgement::decode(&answer, &key).expect("a signed answer");
        assert_eq!((Some(answer.nonce), answer.fresh), (fixture.nonce(), true));
    }
}

#[test]
fn an_acknowledgement_is_shorter_than_any_heartbeat_and_cannot_be_forged() {
    let key = key("w", 0xe1);
    let mut shortest = heartbeat("w", 0, 0, None);
    shortest.interval = Duration::from_millis(1);
    shortest.memory.available_bytes = 0;
    shortest.memory.total_bytes = 1;
    shortest.version = "0".to_owned();
    let answer = Acknowledgement {
        heartbeat: sequence(u64::MAX, u64::MAX),
        nonce: Nonce(u64::MAX),
        fresh: false,
        new_boot: true,
    };
    let datagram = answer.encode(&key).unwrap();
    assert!(datagram.len() < shortest.encode_signed(&key).unwrap().len());
    assert_eq!(Acknowledgement::decode(&datagram, &key), Ok(answer));
    for bit in 0..datagram.len() * 8 {
        let mut forged = datagram.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(Acknowledgement::decode(&forged, &key).is_err(), "bit {bit}");
    }
    let other = super::tests::key("w", 0xa2);
    assert!(Acknowledgement::decode(&datagram, &other).is_err());
}

#[test]
fn permissive_accepts_unsigned_but_not_wrongly_signed_heartbeats() {
    let mut fixture = Fixture::new(Authentication::Permissive);
    let unsigned = heartbeat("worker1", 1, 1, None).encode().unwrap();
    let verified = fixture.verify(&unsigned).expect("a good heartbeat");
    assert_eq!(verified.signature, None);
    assert!(
        fixture.accept(&verified).is_none(),
        "answers an unsigned heartbeat"
    );

    let mut wrong = fixture.signed(&key("worker1", 0xa1), 2);
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    assert_eq!(fixture.refusal(&wrong), "bad_signature");

    // An unsigned heartbeat of a worker that signs is refused.
    let signed = fixture.signed(&key("worker1", 0xa1), 3);
    fixture.receive(&signed);
    assert_eq!(fixture.refusal(&unsigned), "unsigned_beside_signed");
    let of_another = heartbeat("worker2", 1, 1, None).encode().unwrap();
    assert!(fixture.verify(&of_another).is_ok());
    fixture.advance(10);
    assert!(fixture.verify(&unsigned).is_ok());
}

#[test]
fn off_ignores_signatures() {
    let mut fixture = Fixture::new(Authentication::Off);
    let outsider = Key::new("worker1".to_owned(), KeyId(0xff), &Zeroizing::new([7; 32]));
    let datagram = fixture.signed(&outsider, 1);
    let verified = fixture.verify(&datagram).expect("a good heartbeat");
    assert_eq!(verified.signature, None);
    assert!(fixture.accept(&verified).is_none());
    let unsigned = heartbeat("worker1", 1, 2, None).encode().unwrap();
    assert!(fixture.verify(&unsigned).is_ok());
    assert_eq!(fixture.refusal(b"memlb1 000000a1 "), "bad_envelope");
}

#[test]
fn a_flood_of_garbage_is_rate_limited_and_genuine_heartbeats_pass() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let genuine = fixture.signed(&key("worker1", 0xa1), 1);
    fixture.receive(&genuine);
    let flooder: SocketAddr = ([192, 168, 56, 66], 4_000).into();
    let mut reasons = BTreeMap::new();
    for _ in 0..100_000 {
        let refused = fixture
            .authenticator
            .verify(b"garbage", flooder, fixture.now)
            .expect_err("garbage");
        fixture.authenticator.record_refused(flooder, fixture.now);
        *reasons.entry(refused.refusal.name()).or_insert(0) += 1;
    }
    assert_eq!(reasons["unsigned"], 1_000);
    assert_eq!(reasons["rate_limited"], 99_000);
    // Garbage with the forged address of the genuine agent does not limit it.
    for _ in 0..100_000 {
        assert_eq!(fixture.refusal(b"garbage"), "unsigned");
    }
    assert!(fixture.verify(&genuine).is_ok());
}

proptest! {
    #[test]
    fn damaged_heartbeats_are_refused(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        enforce: bool,
    ) {
        let mode = if enforce { Authentication::Enforce } else { Authentication::Permissive };
        let mut fixture = Fixture::new(mode);
        let good = fixture.signed(&key("worker1", 0xa1), 1);
        let mut bytes = good.clone();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(cut.index(2 * bytes.len()));
        prop_assume!(bytes != good);
        prop_assert!(fixture.verify(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
        let mut fixture = Fixture::new(Authentication::Enforce);
        prop_assert!(fixture.verify(&bytes).is_err());
    }
}

fn ping(worker: &str) -> Ping {
    Ping {
        worker: worker.to_owned(),
        sequence: sequence(u64::MAX, u64::MAX),
    }
}

#[test]
fn answers_pings_that_it_would_accept_and_counts_them_as_no_heartbeat() {
    let key = key("worker1", 0xa1);
    let (signed, unsigned) = (Some(true), Some(false));
    for (authentication, to_signed, to_unsigned) in [
        (Authentication::Off, unsigned, unsigned),
        (Authentication::Permissive, signed, unsigned),
        (Authentication::Enforce, signed, None),
    ] {
        for (signer, expected) in [(Some(&key), to_signed), (None, to_unsigned)] {
            let mut fixture = Fixture::new(authentication);
            let question = ping("worker1").encode(signer).unwrap();
            let refused = fixture
                .verify(&question)
                .expect_err("a question is no heartbeat");
            let answer = refused.reply.map(|answer| {
                assert!(answer.len() < question.len(), "it multiplies traffic");
                let pong = Pong::decode(&answer, Some(&key)).unwrap();
                assert_eq!(pong.ping, ping("worker1").sequence);
                pong.is_signed
            });
            assert_eq!(answer, expected, "{authentication:?}");
        }
    }
}

#[test]
fn reports_whether_a_worker_exists_only_to_a_ping_that_is_signed_where_it_must_be() {
    let key = key("w", 0xe1);
    for (authentication, signer, expected) in [
        (Authentication::Off, None, true),
        (Authentication::Permissive, None, false),
        (Authentication::Permissive, Some(&key), true),
        (Authentication::Enforce, Some(&key), true),
    ] {
        let mut fixture = Fixture::new(authentication);
        fixture.authenticator.keys.add(key.clone(), "here").unwrap();
        let question = ping("w").encode(signer).unwrap();
        let refused = fixture.verify(&question).expect_err("a question");
        assert_eq!(refused.sender.is_some(), expected, "{authentication:?}");
        let answer = refused.reply.expect("an answer");
        assert!(!Pong::decode(&answer, Some(&key)).unwrap().is_unknown);
        let Some(sender) = refused.sender else {
            continue;
        };
        assert_eq!(sender.worker, "w");
        assert!(
            sender.if_unknown.len() < question.len(),
            "it multiplies traffic"
        );
        let pong = Pong::decode(&sender.if_unknown, Some(&key)).unwrap();
        assert!(pong.is_unknown);
        assert_eq!(pong.is_signed, signer.is_some());
    }
}

#[test]
fn unauthenticated_pings_get_no_pong() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let key = key("worker1", 0xa1);
    let question = ping("worker1").encode(Some(&key)).unwrap();
    for bit in 0..question.len() * 8 {
        let mut forged = question.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let refused = fixture.verify(&forged).expect_err("forged");
        assert_eq!(refused.reply, None, "bit {bit}");
        assert_ne!(refused.refusal, Refusal::Ping);
    }
    fixture.advance(10);
    let others = ping("worker2").encode(Some(&key)).unwrap();
    assert_eq!(fixture.refusal(&others), "other_workers_key");
    let unknown = super::tests::key("worker1", 0xee);
    let question = ping("worker1").encode(Some(&unknown)).unwrap();
    assert_eq!(fixture.refusal(&question), "unknown_key");
    // And an answer cannot be forged towards the worker.
    let answer = ping("worker1").pong(Some(&unknown), false).unwrap();
    assert!(Pong::decode(&answer, Some(&key)).is_err());
}

#[test]
fn a_new_boot_is_demanded_with_the_workers_own_key() {
    let mut fixture = Fixture::new(Authentication::Enforce);
    let own = key("worker1", 0xa1);
    let verified = fixture.verify(&fixture.signed(&own, 9)).expect("signed");
    let demand = fixture
        .authenticator
        .request_new_boot(&verified, FROM)
        .expect("an answer");
    let text = String::from_utf8(demand.clone()).unwrap();
    assert!(
        text.ends_with(r#","fresh":false,"new_boot":true}"#),
        "{text}"
    );
    assert!(demand.len() < fixture.signed(&own, 9).len());
    let answer = Acknowledgement::decode(&demand, &own).expect("signed by the manager");
    assert_eq!(
        (answer.heartbeat.boot, answer.heartbeat.number),
        (BootId(1), 9)
    );
    assert!(answer.new_boot && !answer.fresh);
    assert!(Acknowledgement::decode(&demand, &key("worker2", 0xb1)).is_err());
    // A usual acknowledgement, as of an older manager, asks for none.
    let usual = fixture
        .receive(&fixture.signed(&own, 10))
        .expect("an answer");
    let text = String::from_utf8(usual.clone()).unwrap();
    assert!(!text.contains("new_boot"), "{text}");
    assert!(!Acknowledgement::decode(&usual, &own).unwrap().new_boot);
    // An unsigned heartbeat gets no demand.
    let mut off = Fixture::new(Authentication::Off);
    let unsigned = heartbeat("worker1", 1, 1, None).encode().unwrap();
    let verified = off.verify(&unsigned).expect("unsigned");
    assert_eq!(off.authenticator.request_new_boot(&verified, FROM), None);
}
