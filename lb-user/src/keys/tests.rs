//! Keys as operators make them, lose them and leave them lying about.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::*;

const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn write(path: &Path, text: &str, mode: u32) -> PathBuf {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_owned()
}

fn line(worker: &str, id: &str) -> String {
    format!("memlb-key-1 {worker} {id} {SECRET}\n")
}

fn refusal<T: fmt::Debug>(result: Result<T, anyhow::Error>) -> String {
    let text = format!("{:#}", result.expect_err("refused"));
    assert!(!text.contains("0001020304"), "quotes the secret: {text}");
    text
}

#[test]
fn hmac_matches_rfc_4231() {
    // Its test case 2 has a short key; HMAC pads keys with zeros, and so does this.
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    secret[..4].copy_from_slice(b"Jefe");
    let key = Key::new("worker1".to_owned(), KeyId(1), &secret);
    let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    let mut tag = [0; TAG_BYTES];
    assert!(parse_hex(expected.as_bytes(), &mut tag));
    let parts: [&[u8]; 3] = [b"what do ya ", b"want for", b" nothing?"];
    assert_eq!(key.sign(&parts), tag);
    assert!(key.verify(&parts, &tag));
    tag[31] ^= 1;
    assert!(!key.verify(&parts, &tag));
}

#[test]
fn a_new_key_is_private_different_each_time_and_never_overwrites() {
    let directory = tempfile::tempdir().unwrap();
    let one = directory.path().join("worker1.key");
    let other = directory.path().join("worker1-2.key");
    let id = write_new(&one, "worker1").unwrap();
    assert_eq!(
        fs::metadata(&one).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let key = read_key(&one, "worker1").unwrap();
    assert_eq!((key.id(), key.worker()), (id, "worker1"));
    assert!(refusal(write_new(&one, "worker1")).contains("overwrites no file"));
    let lost = refusal(write_new(
        &directory.path().join("absent/one.key"),
        "worker1",
    ));
    assert!(lost.contains("create its directory first"), "{lost}");
    assert!(!lost.contains("overwrites"), "{lost}");
    write_new(&other, "worker1").unwrap();
    let secret = |path: &Path| fs::read_to_string(path).unwrap()[29..].to_owned();
    assert_ne!(secret(&one), secret(&other));
    assert!(!format!("{key:?}").contains(&secret(&one)[..16]));
}

#[test]
fn keys_are_read_from_a_file_or_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let both = format!(
        "# two\n\n{}{}",
        line("worker1", "0000000a"),
        line("worker2", "0000000b")
    );
    write(&at("a.key"), &both, 0o600);
    write(&at("b.key"), &line("worker1", "0000000c"), 0o400);
    write(&at("notes.txt"), "not a key", 0o644);
    assert_eq!(read_keys(&at("a.key")).unwrap().len(), 2);
    let keys = read_keys(directory.path()).unwrap();
    assert_eq!(keys.len(), 3);
    let ids: Vec<KeyId> = keys.of_worker("worker1").map(Key::id).collect();
    assert_eq!(ids, [KeyId(10), KeyId(12)]);
    assert_eq!(keys.find(KeyId(11)).map(Key::worker), Some("worker2"));
    assert!(keys.find(KeyId(1)).is_none());

    write(&at("c.key"), &line("worker1", "0000000d"), 0o600);
    assert!(refusal(read_keys(directory.path())).contains("worker1 has 2 keys already"));
    write(&at("c.key"), &line("worker3", "0000000a"), 0o600);
    let twice = refusal(read_keys(directory.path()));
    assert!(twice.contains("0000000a exists twice"), "{twice}");
    assert!(
        twice.contains("c.key, line 1") && twice.contains("a.key, line 3"),
        "{twice}"
    );
}

#[test]
fn keys_are_read_as_windows_editors_write_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker1.key");
    let good = line("worker1", "0000000a");
    for text in [
        good.replace('\n', "\r\n"),
        format!("\u{feff}{good}"),
        format!("\u{feff}# mine\r\n{good}\r\n"),
        good.trim_end().to_owned(),
    ] {
        write(&path, &text, 0o600);
        assert!(read_key(&path, "worker1").is_ok(), "{text:?}");
    }
    let wide: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, wide).unwrap();
    let said = refusal(read_key(&path, "worker1"));
    assert!(said.contains("iconv -f UTF-16LE -t UTF-8"), "{said}");
}

#[test]
fn other_files_in_the_key_directory_are_skipped_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write(&at("worker1.key"), &line("worker1", "0000000a"), 0o600);
    assert_eq!(
        read_keys(directory.path())
            .unwrap()
            .warning(directory.path()),
        None
    );
    let strays = [
        "#worker1.key#",
        ".#worker1.key",
        "._worker1.key",
        ".worker1.key.swp",
        "worker1.key.bak",
        "worker1.key.dpkg-old",
        "worker1.key~",
    ];
    for name in strays {
        write(&at(name), "x", 0o644);
    }
    fs::create_dir(at("old.key")).unwrap();
    // As Kubernetes mounts a secret.
    fs::create_dir(at("..2026_11_28")).unwrap();
    symlink("..2026_11_28", at("..data")).unwrap();
    let keys = read_keys(directory.path()).unwrap();
    assert_eq!(keys.len(), 1);
    let warning = keys.warning(directory.path()).unwrap();
    assert!(
        warning.contains("\"#worker1.key#\", \".#worker1.key\""),
        "{warning}"
    );
    assert!(warning.contains(" and 3 more;"), "{warning}");
    assert!(!warning.contains("2026"), "{warning}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker1.key");
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o644] {
        write(&path, &line("worker1", "0000000a"), mode);
        let said = refusal(read_key(&path, "worker1"));
        assert!(
            said.contains(&format!("mode {mode:04o}")) && said.contains("chmod 600"),
            "{said}"
        );
    }
    write(&path, &line("worker1", "0000000a"), 0o400);
    assert!(read_key(&path, "worker1").is_ok());
    // A link is what it points to.
    let link = directory.path().join("link.key");
    symlink(&path, &link).unwrap();
    assert!(read_key(&link, "worker1").is_ok());

    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
    assert!(refusal(read_keys(directory.path())).contains("mode 0770"));
}

#[test]
fn reports_what_is_wrong_with_key_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker1.key");
    let good = line("worker1", "0000000a");
    for (text, said) in [
        (String::new(), "has no key"),
        ("# nothing\n".to_owned(), "has no key"),
        (good.replace("key-1", "key-2"), "not a key"),
        (good.replace(" 0000000a", ""), "not a key"),
        (good.replace('\n', " more\n"), "not a key"),
        (good.replace("worker1", "w/1"), "is not valid"),
        (good.replace("0000000a", "000000A0"), "the key's id"),
        (good.replace("0000000a", "a"), "the key's id"),
        (good.replace("1f\n", "\n"), "the secret is not"),
        (good.replace("1f\n", "1F\n"), "the secret is not"),
        (good.replace(SECRET, &"00".repeat(32)), "one repeated byte"),
        (
            format!("{good}{}", good.replace("0a ", "0b ")),
            "has 2 keys",
        ),
        (good.replace("worker1", "worker2"), "has a key of worker2"),
        (format!("\n\n{}", good.replace("key-1", "")), "line 3"),
    ] {
        write(&path, &text, 0o600);
        let refused = refusal(read_key(&path, "worker1"));
        assert!(refused.contains(said), "{text:?}: {refused}");
        assert!(refused.contains("worker1.key"), "{refused}");
    }
    assert!(refusal(read_key(directory.path(), "worker1")).contains("not a regular file"));
    let missing = directory.path().join("missing");
    assert!(refusal(read_key(&missing, "worker1")).contains("open the key file"));
    assert!(refusal(read_keys(&missing)).contains("heartbeats.keys"));
    let pipe = directory.path().join("pipe.key");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refusal(read_key(&pipe, "worker1")).contains("not a regular file"));
}

#[test]
fn reports_what_is_different_in_a_ring() {
    let secret = |byte: u8| Zeroizing::new([byte; SECRET_BYTES]);
    let ring = |keys: &[(&str, u32, u8)]| {
        let mut ring = KeyRing::default();
        for (worker, id, byte) in keys {
            let key = Key::new((*worker).to_owned(), KeyId(*id), &secret(*byte));
            ring.add(key, "here").unwrap();
        }
        ring
    };
    let old = ring(&[("worker1", 1, 1), ("worker2", 2, 2), ("worker3", 3, 3)]);
    assert_eq!(old.changes(&old), [""; 0]);
    let new = ring(&[("worker1", 1, 1), ("worker2", 2, 9), ("worker1", 4, 4)]);
    assert_eq!(
        old.changes(&new),
        [
            "key 00000002 of worker2 removed",
            "key 00000003 of worker3 removed",
            "key 00000002 of worker2 added",
            "key 00000004 of worker1 added",
        ]
    );
}

#[test]
fn a_key_of_peers_is_not_a_workers_and_may_have_a_successor() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let id = write_new_peer(&at("peer.key")).unwrap();
    let keys = read_peer_keys(&at("peer.key")).unwrap();
    assert_eq!(keys.signing().id(), id);
    assert!(keys.find(KeyId(!id.0)).is_none());
    assert!(refusal(write_new_peer(&at("peer.key"))).contains("overwrites no file"));

    write_new_peer(&at("next.key")).unwrap();
    let text = |name: &str| fs::read_to_string(at(name)).unwrap();
    let both = text("next.key") + &text("peer.key");
    write(&at("both.key"), &both, 0o600);
    let both_keys = read_peer_keys(&at("both.key")).unwrap();
    assert_ne!(both_keys.signing().id(), id);
    assert!(
        both_keys
            .find(id)
            .is_some_and(|key| key.is_same_as(keys.signing()))
    );
    assert!(!format!("{both_keys:?}").contains(&text("peer.key")[26..]));

    let line = format!("memlb-peer-key-1 0000000a {SECRET}\n");
    for (text, said) in [
        (self::line("worker1", "0000000a"), "a key of a worker"),
        (format!("{both}{line}"), "has 2 keys already"),
        (format!("{line}{line}"), "0000000a exists twice"),
        (line.replace(" 0000000a", ""), "not a key"),
        (String::new(), "memlb keygen --peer"),
    ] {
        write(&at("bad.key"), &text, 0o600);
        let refused = refusal(read_peer_keys(&at("bad.key")));
        assert!(refused.contains(said), "{text:?}: {refused}");
    }
    write(&at("bad.key"), &line, 0o600);
    assert!(refusal(read_keys(&at("bad.key"))).contains("a key of managers"));
    write(&at("bad.key"), &line, 0o640);
    assert!(refusal(read_peer_keys(&at("bad.key"))).contains("mode 0640"));
}
