//! Frames: a header, a content, and a tag over both.
//!
//! ```text
//! length u32 | type u8 | version u8 | count u16 | sequence u64 | content | HMAC-SHA256, 16 bytes of it
//! ```
//!
//! `length` counts everything after itself. `sequence` counts the frames of one direction of one session from 0 on, so
//! that a frame cannot be repeated, left out or moved; the session's key is in no other session.

use super::{ByteReader, Refusal};
use crate::keys::SigningKey;

/// The longest frame, its length included.
pub const MAX_FRAME: usize = 64 * 1024;

const LENGTH: usize = size_of::<u32>();
const HEADER: usize = 16;
const TAG: usize = 16;

/// Bytes of a frame around its content.
pub const FRAME_OVERHEAD: usize = HEADER + TAG;

/// A frame whose tag is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    /// Version of what this type contains.
    pub version: u8,
    /// How many things it contains.
    pub count: u16,
    pub sequence: u64,
    pub content: &'a [u8],
}

/// Makes the frames of one direction of a session.
#[derive(Debug)]
pub struct FrameSigner {
    key: SigningKey,
    next: u64,
}

impl FrameSigner {
    pub fn new(key: SigningKey) -> Self {
        Self { key, next: 0 }
    }

    /// Appends a frame to `out`, whose content `write` appends; returns its sequence.
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
        out.extend_from_slice(&[kind, super::message::VERSION]);
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

/// Checks the frames of one direction of a session.
#[derive(Debug)]
pub struct FrameVerifier {
    key: SigningKey,
    next: u64,
}

impl FrameVerifier {
    pub fn new(key: SigningKey) -> Self {
        Self { key, next: 0 }
    }

    /// Returns the first frame of `bytes` with its length in bytes; nothing while it is not whole.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it. The session ends then.
    pub fn verify<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Refusal> {
        let mut input = ByteReader(bytes);
        let Some(length) = input.u32() else {
            return Ok(None);
        };
        let whole = (length as usize).saturating_add(LENGTH);
        if !(FRAME_OVERHEAD..=MAX_FRAME).contains(&whole) {
            return Err(Refusal::BadLength { bytes: whole });
        }
        let Some(frame) = bytes.get(..whole) else {
            return Ok(None);
        };
        let (signed, tag) = frame.split_at(whole - TAG);
        if !self.key.verify_left(&[signed], tag) {
            return Err(Refusal::BadSignature);
        }
        let malformed = || Refusal::Malformed { kind: 0 };
        let mut input = ByteReader(&signed[LENGTH..]);
        let frame = Frame {
            kind: input.u8().ok_or_else(malformed)?,
            version: input.u8().ok_or_else(malformed)?,
            count: input.u16().ok_or_else(malformed)?,
            sequence: input.u64().ok_or_else(malformed)?,
            content: input.0,
        };
        if frame.sequence != self.next {
            return Err(Refusal::Replayed);
        }
        self.next += 1;
        Ok(Some((frame, whole)))
    }
}
