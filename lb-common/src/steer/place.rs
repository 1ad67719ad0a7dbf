//! Where a handshake is kept, and how the packets of either side find it.
//!
//! A keyed hash of the client's address and port names a column of places. Beside each column stand notes,
//! a word for each place, which tell whose handshake is there: a client's packet finds its handshake by one
//! look at them. A worker's packet finds it by the manager's port that it is sent to. Nothing is ever full
//! here: a new handshake replaces the oldest one of its column.

use super::{Hook, Step, Tables, port};
use crate::{
    address::Address,
    maps::{FlowKey, Handshake, ROWS, Settings, mode, progress},
};

/// No place at all.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The place of the handshake that the answer with the tuple `key` belongs to.
///
/// A worker answers to the manager's port; the manager's own server, met on its way out, answers to
/// the client.
#[inline(never)]
pub(super) fn find_worker<T: Tables>(tables: &T, hook: Hook, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    let leaves = key.reversed();
    if hook != Hook::Ingress {
        return find(tables, settings, &leaves, |handshake| {
            handshake.leaves.is(&leaves)
        });
    }
    let place = port::handshake_at(tables, settings, key);
    if let Some(handshake) = tables.handshake(place)
        && handshake.leaves.is(&leaves)
        && is_under_way(&handshake, settings, tables.now_ns())
    {
        return place;
    }
    NOWHERE
}

/// The same for a worker that answers to the client's own address by way of the manager, which
/// [`find_worker`] knows nothing of: only a packet to no service is looked up thus.
#[inline(never)]
pub(super) fn find_routed<T: Tables>(tables: &T, hook: Hook, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    if hook != Hook::Ingress {
        return NOWHERE;
    }
    let leaves = key.reversed();
    find(tables, settings, &leaves, |handshake| {
        let backend = tables.backend(handshake.backend);
        handshake.leaves.is(&leaves) && backend.is_some_and(|it| it.mode == mode::ROUTED)
    })
}

/// The place of the handshake of the client with the tuple `key`.
#[inline(never)]
pub(super) fn find_client<T: Tables>(tables: &T, key: &FlowKey<T::Address>) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    find(tables, settings, key, |handshake| handshake.client.is(key))
}

/// Looks through the column of the client whose packets have the tuple `client`, or leave with it
/// where its address stays.
#[inline(always)]
fn find<T: Tables>(
    tables: &T,
    settings: &Settings,
    client: &FlowKey<T::Address>,
    is_it: impl Fn(&Handshake<T::Address>) -> bool,
) -> u32 {
    let hash = client_hash(settings, client);
    let column = column(settings, hash);
    let Some(notes) = tables.notes(column) else {
        return NOWHERE;
    };
    for row in 0..ROWS {
        if notes[row as usize] != note(hash) {
            continue;
        }
        let place = column * ROWS + row;
        if let Some(handshake) = tables.handshake(place)
            && is_it(&handshake)
            && is_under_way(&handshake, settings, tables.now_ns())
        {
            return place;
        }
    }
    NOWHERE
}

/// Notes whose handshake is kept at `place`.
#[inline(always)]
pub(super) fn take_note<T: Tables>(tables: &T, place: u32, hash: u64) {
    if let Some(mut notes) = tables.notes(place / ROWS) {
        notes[(place % ROWS) as usize] = note(hash);
    }
}

/// Returns a place for a handshake of the client with this hash: a free one of its column, or else the one
/// whose handshake is the first to go.
#[inline(never)]
pub(super) fn room<T: Tables>(tables: &T, hash: u64) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    let first = column(settings, hash) * ROWS;
    let mut search = Search {
        first,
        place: tables.veiled(first),
        most: tables.veiled(0).into(),
    };
    tables.repeat(ROWS, &mut search);
    search.place
}

/// The search for a place, one place of a column a step.
#[repr(C)]
struct Search {
    /// The best until now, and how much speaks for it.
    most: u64,
    place: u32,
    first: u32,
}

/// A handshake that its worker has not answered for this long goes before the answered ones.
const UNANSWERED_NS: u64 = 1_000_000_000;

impl Step for Search {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let place = self.first + number;
        let (Some(settings), Some(handshake)) = (tables.settings(), tables.handshake(place)) else {
            return true;
        };
        let now = tables.now_ns();
        let is_free = !is_under_way(&handshake, settings, now);
        let silence_ns = now.saturating_sub(handshake.syn_ns);
        let is_left = handshake.answered == 0 && silence_ns > UNANSWERED_NS;
        let merit = silence_ns | u64::from(is_left) << 62;
        if is_free || merit >= self.most {
            self.most = merit;
            self.place = place;
        }
        is_free
    }
}

/// Whether packets still belong to a handshake. A connection whose answers do not come by here may be one that is just
/// silent; it goes when its place is needed.
#[inline(always)]
pub(super) fn is_under_way<A: Address>(
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
    handshake.is_whole() && now.saturating_sub(handshake.syn_ns) <= longest
}

#[inline(always)]
fn column(settings: &Settings, hash: u64) -> u32 {
    (hash as u32)
        .checked_rem(settings.half_open_columns)
        .unwrap_or(0)
}

/// What a column notes of a handshake, never 0.
#[inline(always)]
fn note(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

/// Hashes a client's address and port with the secret of these maps (SipHash-1-3; Aumasson and Bernstein,
/// 2012), so that nobody else can say which connections share a column.
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
