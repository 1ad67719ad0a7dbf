//! The table of handshakes, and how a client's packet finds its own.
//!
//! A keyed hash of the client's address and port selects a bucket of slots. Each bucket has owner tags, one word for
//! each slot with hash bits of its client, so that a client's packet finds its handshake with one look-up of the
//! tags. A tag also says whether its slot is held, so that a new handshake finds a free slot without reading one. The
//! table never refuses: a new handshake replaces the oldest of its bucket.

use super::{Step, Tables};
use crate::{
    address::Address,
    maps::{FlowKey, Handshake, SLOTS_PER_BUCKET, Settings, mode, progress},
};

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// The slot of the handshake of the client with the tuple `key`.
#[inline(always)]
pub fn find_by_client<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    find_in_bucket(tables, settings, key, Tuple::Client)
}

/// Searches the bucket of the client with the source address and port of `key` for its handshake.
#[inline(always)]
pub(super) fn find_in_bucket<T: Tables>(
    tables: &T,
    settings: &Settings,
    key: &FlowKey<T::Address>,
    tuple: Tuple,
) -> u32 {
    let hash = client_hash(settings, key);
    let bucket = bucket(settings, hash);
    let Some(owner_tags) = tables.owner_tags(bucket) else {
        return NO_SLOT;
    };
    for index in 0..SLOTS_PER_BUCKET {
        let tag = owner_tags[index as usize];
        if tag & HELD == 0 || tag & !STATE != hash_bits(hash) {
            continue;
        }
        let slot = bucket * SLOTS_PER_BUCKET + index;
        if tables.holds(slot, tuple, key) {
            return slot;
        }
    }
    NO_SLOT
}

/// The tuple of a handshake that is compared with a packet's.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuple {
    Client,
    Translated,
    /// The translated one, in mode `routed`.
    Routed,
}

/// Whether a slot holds a pending handshake with the tuple `key`.
#[inline(always)]
pub fn holds<T: Tables>(tables: &T, slot: u32, tuple: Tuple, key: &FlowKey<T::Address>) -> bool {
    let (Some(settings), Some(handshake)) = (tables.settings(), tables.handshake(slot)) else {
        return false;
    };
    let is_it = match tuple {
        Tuple::Client => handshake.client.is(key),
        Tuple::Translated => handshake.translated.is(key),
        Tuple::Routed => {
            let backend = tables.backend(handshake.backend);
            handshake.translated.is(key) && backend.is_some_and(|it| it.mode == mode::ROUTED)
        }
    };
    is_it && is_pending(&handshake, settings, tables.now_ns())
}

/// Bits of an owner tag. One of the two is set while the slot is held, in turn at each handshake: the end of a former
/// handshake clears the other one, and never frees the slot of the present one.
/// A handshake that expires, or loses its port, leaves its slot held until another one replaces it.
const HELD: u32 = 0b011;
/// Bit of an owner tag: the second bit of [`HELD`] was set last.
const SECOND: u32 = 0b100;
/// The bits of an owner tag that are no hash bits.
const STATE: u32 = HELD | SECOND;

/// Writes the owner tag of `slot`, which is then held.
#[inline(always)]
pub(super) fn set_owner_tag<T: Tables>(tables: &T, slot: u32, hash: u64) {
    if let Some(mut owner_tags) = tables.owner_tags(slot / SLOTS_PER_BUCKET) {
        let tag = &mut owner_tags[(slot % SLOTS_PER_BUCKET) as usize];
        let state = if *tag & SECOND == 0 { SECOND | 2 } else { 1 };
        *tag = hash_bits(hash) | state;
    }
}

/// The bit by which `slot` is held; 0: it is free.
#[inline(always)]
pub(super) fn held<T: Tables>(tables: &T, slot: u32) -> u32 {
    let owner_tags = tables.owner_tags(slot / SLOTS_PER_BUCKET);
    owner_tags.map_or(0, |tags| tags[(slot % SLOTS_PER_BUCKET) as usize] & HELD)
}

/// Frees the slot of a handshake.
#[inline(always)]
pub(super) fn free<T: Tables>(tables: &T, slot: u32, handshake: &mut Handshake<T::Address>) {
    // Before the slot is free for other processors.
    let held = held(tables, slot);
    handshake.backend = 0;
    tables.clear_owner_tag(slot / SLOTS_PER_BUCKET, slot % SLOTS_PER_BUCKET, held);
}

/// Returns a free slot of the bucket of the client with this hash, or `NO_SLOT`.
#[inline(always)]
pub(super) fn find_free_slot<T: Tables>(tables: &T, settings: &Settings, hash: u64) -> u32 {
    let bucket = bucket(settings, hash);
    let Some(owner_tags) = tables.owner_tags(bucket) else {
        return NO_SLOT;
    };
    for index in 0..SLOTS_PER_BUCKET {
        if owner_tags[index as usize] & HELD == 0 {
            return bucket * SLOTS_PER_BUCKET + index;
        }
    }
    NO_SLOT
}

/// Returns a slot for a new handshake of the client with this hash, all slots of whose bucket are held: one of an
/// expired handshake, or the one to replace.
#[inline(always)]
pub fn find_slot<T: Tables>(tables: &T, hash: u64) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_SLOT;
    };
    let first = bucket(settings, hash) * SLOTS_PER_BUCKET;
    let mut search = SlotSearch {
        first,
        slot: tables.barrier_var(first),
        best_score: tables.barrier_var(0).into(),
    };
    tables.repeat(SLOTS_PER_BUCKET, &mut search);
    search.slot
}

/// The search for a slot, one slot a step.
#[repr(C)]
struct SlotSearch {
    /// The best slot so far, and its score.
    best_score: u64,
    slot: u32,
    first: u32,
}

/// A handshake without a reply for this long is replaced before handshakes with a reply.
pub(super) const UNANSWERED_NS: u64 = 1_000_000_000;

impl<T: Tables> Step<T> for SlotSearch {
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
        let slot = self.first + number;
        let (Some(settings), Some(handshake)) = (tables.settings(), tables.handshake(slot)) else {
            return true;
        };
        let now = tables.now_ns();
        let is_free = !is_pending(&handshake, settings, now);
        let idle_ns = now.saturating_sub(handshake.syn_ns);
        let is_abandoned = handshake.answered == 0 && idle_ns > UNANSWERED_NS;
        let score = idle_ns | u64::from(is_abandoned) << 62;
        if is_free || score >= self.best_score {
            self.best_score = score;
            self.slot = slot;
        }
        is_free
    }
}

/// Whether the slot holds a handshake that has not expired. In mode `dsr` an acknowledged handshake may be an idle
/// connection, and has the limit of established ones.
#[inline(always)]
pub(super) fn is_pending<A: Address>(
    handshake: &Handshake<A>,
    settings: &Settings,
    now: u64,
) -> bool {
    let is_acknowledged = handshake.progress != progress::NONE && !handshake.client.is_datagram();
    let longest = if is_acknowledged {
        settings.established_idle_ns
    } else {
        settings.half_open_idle_ns
    };
    handshake.is_valid() && now.saturating_sub(handshake.syn_ns) <= longest
}

#[inline(always)]
fn bucket(settings: &Settings, hash: u64) -> u32 {
    (hash as u32)
        .checked_rem(settings.half_open_buckets)
        .unwrap_or(0)
}

/// The bits of a hash in an owner tag.
#[inline(always)]
fn hash_bits(hash: u64) -> u32 {
    (hash >> 32) as u32 & !STATE
}

/// Hashes a client's address and port with the maps' secret (SipHash-1-3; Aumasson and Bernstein, 2012), so that an
/// attacker cannot predict which connections share a bucket.
#[inline(always)]
pub(super) fn client_hash<A: Address>(settings: &Settings, client: &FlowKey<A>) -> u64 {
    let [high, low] = client.source.words();
    let port = u64::from(u16::from_ne_bytes(client.source_port));
    let mut state = SipState::new(settings.secret);
    if A::IS_V4 {
        state.absorb(low << 32 | port);
    } else {
        state.absorb(high);
        state.absorb(low);
        state.absorb(port);
    }
    state.finish()
}

struct SipState([u64; 4]);

impl SipState {
    #[inline(always)]
    fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        let [a, b, c, d] = self.0;
        a ^ b ^ c ^ d
    }

    #[inline(always)]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }
}
