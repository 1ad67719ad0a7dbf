//! The fuzz targets' corpora, and damaged copies of them, where there is no fuzzer.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, path::Path};

#[path = "../../fuzz/harmless.rs"]
mod harmless;

#[path = "../../fuzz/peer_harmless.rs"]
mod peer_harmless;

/// Damaged copies of each datagram of the corpus.
const COPIES: u64 = 400;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let named = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(path).unwrap())
    };
    files.into_iter().map(named).collect()
}

/// Numbers in an order that is always the same (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

/// Changes, doubles, moves or removes some bytes, as fuzzers do.
fn damage(datagram: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    const PIECES: [&[u8]; 10] = [
        b"\"",
        b"{",
        b"]",
        b"\\u0000",
        b"1e999",
        b"-1",
        b"18446744073709551615",
        b"null",
        b"\x1b[2J",
        b"\xff",
    ];
    let mut bytes = datagram.to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len() + 1);
        let end = (at + dice.roll(16)).min(bytes.len());
        match dice.roll(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => drop(bytes.splice(at..end, PIECES[dice.roll(PIECES.len())].iter().copied())),
            _ => {
                let from = dice.roll(other.len() + 1);
                drop(bytes.splice(at.., other[from..].iter().copied()));
            }
        }
    }
    bytes
}

#[test]
fn the_corpus_and_its_damaged_copies_do_no_harm() {
    try_all("decode", harmless::check);
}

#[test]
fn what_peers_send_and_damaged_copies_do_no_harm() {
    try_all("peer_frame", peer_harmless::check);
}

#[test]
fn the_corpus_of_peers_holds_what_is_accepted_and_what_is_not() {
    use memlb::peer::wire::{Frame, Message};
    for (name, bytes) in corpus("peer_frame") {
        let ([kind, count @ ..], content) = bytes.split_first_chunk::<3>().unwrap();
        let frame = Frame {
            kind: *kind,
            version: 1,
            count: u16::from_be_bytes(*count),
            sequence: 0,
            content,
        };
        let read = Message::decode(&frame);
        let is_read = matches!(read, Ok(Some(_)));
        assert_eq!(is_read, name.starts_with("good-"), "{name}: {read:?}");
        assert_eq!(read.is_err(), name.starts_with("bad-"), "{name}: {read:?}");
    }
}

fn try_all(target: &str, check: impl Fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 20, "the corpus is not there");
    for (number, (name, datagram)) in corpus.iter().enumerate() {
        println!("{name}");
        check(datagram);
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ number as u64);
        for _ in 0..COPIES {
            let other = &corpus[dice.roll(corpus.len())].1;
            check(&damage(datagram, other, &mut dice));
        }
    }
}

#[test]
fn the_corpus_holds_what_is_accepted_and_what_is_not() {
    use memlb::heartbeat::decode;
    let (mut accepted, mut reasons) = (0, std::collections::BTreeSet::new());
    for (name, datagram) in corpus("decode") {
        let result = decode(&datagram, true);
        assert_eq!(
            result.is_ok(),
            name.starts_with("good-"),
            "{name}: {result:?}"
        );
        match result {
            Ok(_) => accepted += 1,
            Err(refusal) => drop(reasons.insert(refusal.name())),
        }
    }
    assert!(
        accepted >= 5 && reasons.len() >= 10,
        "{accepted}, {reasons:?}"
    );
}
