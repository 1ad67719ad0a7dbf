//! Frames: a header, a content, and a tag over both.
//!
//! ```text
//! length u32 | type u8 | version u8 | count u16 | sequence u64 | content | HMAC-SHA256, 16 bytes of it
//! ```
//!
//! `length` counts everything after itself. `sequence` counts the frames of one direction of one session from 0 on, so
//! that an attacker cannot repeat, drop or reorder frames. Each session has its own key.

use super::{ByteReader, MAX_FRAME, PeerRefusal, VERSION};
use crate::keys::SigningKey;

const LENGTH: usize = size_of::<u32>();
const HEADER: usize = 16;
const TAG: usize = 16;

/// Bytes of a frame around its content.
pub const FRAME_OVERHEAD: usize = HEADER + TAG;

/// A frame whose tag is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    /// Version of the content's format.
    pub version: u8,
    /// Number of elements in the content.
    pub count: u16,
    pub sequence: u64,
    pub content: &'a [u8],
}

/// Signs the frames of one direction of a session.
#[derive(Debug)]
pub struct FrameSigner {
    key: SigningKey,
    next: u64,
}

impl FrameSigner {
    pub fn new(key: SigningKey) -> Self {
        Self { key, next: 0 }
    }

    /// Appends a frame to `out`; `write` appends its content. Returns the frame's sequence.
    ///
    /// The content is at most [`MAX_FRAME`] less [`FRAME_OVERHEAD`] bytes long.
    pub fn sign(
        &mut self,
        kind: u8,
        count: u16,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> u64 {
        let begin = out.len();
        let sequence = self.next;
        self.next += 1;
        out.extend_from_slice(&[0; LENGTH]);
        out.extend_from_slice(&[kind, VERSION]);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        write(out);
        let length = out.len() - begin + TAG;
        debug_assert!(length <= MAX_FRAME);
        let after_itself = (length - LENGTH) as u32;
        out[begin..begin + LENGTH].copy_from_slice(&after_itself.to_be_bytes());
        let tag = self.key.sign(&[&out[begin..]]);
        out.extend_from_slice(&tag[..TAG]);
        sequence
    }
}

/// Verifies the frames of one direction of a session.
#[derive(Debug)]
pub struct FrameVerifier {
    key: SigningKey,
    next: u64,
}

impl FrameVerifier {
    pub fn new(key: SigningKey) -> Self {
        Self { key, next: 0 }
    }

    /// Returns the first frame of `bytes` and its length in bytes; `None` while it is not complete.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the frame. The session must end.
    pub fn verify<'a>(
        &mut self,
        bytes: &'a [u8],
    ) -> Result<Option<(Frame<'a>, usize)>, PeerRefusal> {
        let mut input = ByteReader(bytes);
        let Some(length) = input.u32() else {
            return Ok(None);
        };
        let whole = (length as usize).saturating_add(LENGTH);
        if !(FRAME_OVERHEAD..=MAX_FRAME).contains(&whole) {
            return Err(PeerRefusal::BadLength { bytes: whole });
        }
        let Some(frame) = bytes.get(..whole) else {
            return Ok(None);
        };
        let (signed, tag) = frame.split_at(whole - TAG);
        if !self.key.verify_left(&[signed], tag) {
            return Err(PeerRefusal::BadSignature);
        }
        let malformed = || PeerRefusal::Malformed { kind: 0 };
        let mut input = ByteReader(&signed[LENGTH..]);
        let frame = Frame {
            kind: input.u8().ok_or_else(malformed)?,
            version: input.u8().ok_or_else(malformed)?,
            count: input.u16().ok_or_else(malformed)?,
            sequence: input.u64().ok_or_else(malformed)?,
            content: input.0,
        };
        if frame.sequence != self.next {
            return Err(PeerRefusal::Replayed);
        }
        self.next += 1;
        Ok(Some((frame, whole)))
    }
}
