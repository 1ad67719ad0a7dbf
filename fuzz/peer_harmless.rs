//! The invariants of bytes from a peer, for the fuzz target and for the test with its corpus.

use memlb::{
    keys::{KeyId, PeerKeys, SigningKey},
    peer::wire::{Hello, MAX_FRAME, Message, Role, SessionKeys},
};
use zeroize::Zeroizing;

/// Reads bytes as a hello, as frames, and as the content of a frame of their first byte's type and their next two
/// bytes' count; checks the results.
///
/// # Panics
///
/// If an invariant does not hold.
pub fn check(bytes: &[u8]) {
    let keys = PeerKeys::single(SigningKey::new(KeyId(0xa1), &Zeroizing::new([0xfb; 32])));
    let session = || SessionKeys::derive(keys.signing(), b"one", b"other");
    for role in [Role::Connector, Role::Listener] {
        let refused = Hello::verify(bytes, role, |_| Ok(&keys)).expect_err("a hello was forged");
        check_refusal(&refused);
    }
    match session().of(Role::Listener).1.verify(bytes) {
        Ok(opened) => assert_eq!(opened, None, "a frame was forged"),
        Err(refused) => check_refusal(&refused),
    }
    let Some(([kind, count @ ..], content)) = bytes.split_first_chunk::<3>() else {
        return;
    };
    if content.len() > MAX_FRAME / 2 {
        return;
    }
    // As if the peer itself had sent it.
    let mut frame = Vec::new();
    let count = u16::from_be_bytes(*count);
    session()
        .of(Role::Connector)
        .0
        .sign(*kind, count, &mut frame, |out| {
            out.extend_from_slice(content);
        });
    let mut verifier = session().of(Role::Listener).1;
    let (read, length) = verifier
        .verify(&frame)
        .expect("its own key")
        .expect("whole");
    assert_eq!(length, frame.len());
    match Message::decode(&read) {
        Ok(Some(message)) => {
            // A decoded message can be encoded, and decodes to the same message.
            let mut again = Vec::new();
            message.sign(&mut session().of(Role::Connector).0, &mut again);
            let mut verifier = session().of(Role::Listener).1;
            let (read, _) = verifier
                .verify(&again)
                .expect("its own key")
                .expect("whole");
            assert_eq!(Message::decode(&read), Ok(Some(message)));
        }
        Ok(None) => {}
        Err(refused) => check_refusal(&refused),
    }
    assert!(verifier.verify(&frame).is_err(), "a frame was repeated");
}

fn check_refusal(refused: &memlb::peer::wire::PeerRefusal) {
    let shown = refused.to_string();
    assert!(
        !shown.contains(char::is_control) && shown.len() < 500,
        "{shown:?}"
    );
    let name = refused.name();
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    );
}
