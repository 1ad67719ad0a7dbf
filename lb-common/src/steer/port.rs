//! Which of the manager's ports a new connection takes towards its worker.
//!
//! A worker may keep a connection that it closed first in TIME_WAIT for a minute, and answers a SYN of another
//! client on the same tuple with a bare ACK. So a pool keeps its ports in three states, and a new connection
//! takes the first that there is of:
//!
//! 1. a port known to be free: never used, or its last connection was reset or closed by the client first;
//! 2. a port whose connection is over, the longest silent one of those looked at;
//! 3. a port whose connection is over without a packet that told so: idle for too long, evicted, or a
//!    handshake that was abandoned. Where none is, the oldest handshake, or else the longest silent connection
//!    of a client that holds most ports, gives its port up.
//!
//! A search goes round: it begins where the last one ended, so that a port rests for as long as it can. The
//! bits only say where to look: [`examine`] asks the tables whether a port is in use.

use super::{
    Step, Tables,
    flow::{are_twins, is_over, silence_ns, uncount},
    place::{NOWHERE, is_under_way},
};
use crate::{
    address::Address,
    maps::{
        FlowKey, MOST_NAT_SOURCES, PORTS_PER_WORD, ServiceKey, Settings, TIME_WAIT_NS, direction,
        ended, mode,
    },
};

/// No port at all.
pub(super) const NO_PORT: u32 = u32::MAX;

/// How many ports whose connection is over are looked at for one that was silent for long enough.
const WAITING_COMPARED: u32 = 8;
/// How many ports in use are looked at for one whose connection is over.
const USED_COMPARED: u32 = 32;
/// A connection that was silent for less gives its port to nobody.
const SILENT_NS: u64 = 60_000_000_000;

/// What the end of a connection leaves of it at the worker.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    Nothing,
    /// TIME_WAIT, a half-open connection, or whatever else an end without a word leaves.
    Perhaps,
}

impl Remains {
    /// After both sides have ended with these bits, the second of them in this direction: who closes first keeps
    /// TIME_WAIT (RFC 9293, section 3.6).
    #[inline(always)]
    pub(super) fn after(ended_bits: u8, second: u8) -> Self {
        if ended_bits & ended::RESET != 0 || second == direction::REPLY {
            Self::Nothing
        } else {
            Self::Perhaps
        }
    }
}

/// The place of the handshake that was begun from the port to which the packet with the tuple `key` is sent.
#[inline(always)]
pub(super) fn handshake_at<T: Tables>(
    tables: &T,
    settings: &Settings,
    key: &FlowKey<T::Address>,
) -> u32 {
    let endpoint = ServiceKey {
        address: key.source.mapped(),
        port: key.source_port,
        protocol: key.protocol as u8,
        reserved: 0,
    };
    let Some(position) = position(tables, settings, key.destination, key.destination_port) else {
        return NOWHERE;
    };
    let Some(pool) = tables.pool_of(&endpoint) else {
        return NOWHERE;
    };
    let index = index(settings, pool, position);
    // 0 stands for none.
    let place = tables.port_handshake(index).unwrap_or(0);
    place.wrapping_sub(1)
}

/// Notes that the handshake at `place` was begun from the port that it leaves with.
#[inline(always)]
pub(super) fn note_handshake<T: Tables>(
    tables: &T,
    backend: u32,
    leaves: &FlowKey<T::Address>,
    place: u32,
) {
    let (Some(settings), Some(backend)) = (tables.settings(), tables.backend(backend)) else {
        return;
    };
    if backend.mode == mode::NAT
        && let Some(position) = position(tables, settings, leaves.source, leaves.source_port)
    {
        let index = index(settings, backend.port_pool, position);
        tables.note_port_handshake(index, place + 1);
    }
}

/// Gives back the port of a connection to `backend` that left with the tuple `leaves`.
#[inline(never)]
pub(super) fn release<T: Tables>(
    tables: &T,
    backend: u32,
    leaves: &FlowKey<T::Address>,
    remains: Remains,
) -> u32 {
    let (Some(settings), Some(backend)) = (tables.settings(), tables.backend(backend)) else {
        return NO_PORT;
    };
    if backend.mode != mode::NAT {
        return NO_PORT;
    }
    let Some(position) = position(tables, settings, leaves.source, leaves.source_port) else {
        return NO_PORT;
    };
    let word = backend.port_pool * settings.pool_words + position / PORTS_PER_WORD;
    let bit = 1 << (position % PORTS_PER_WORD);
    match remains {
        Remains::Nothing => {
            tables.clear_ports(word, PortState::Waiting, bit);
            tables.clear_ports(word, PortState::Used, bit);
        }
        Remains::Perhaps => {
            tables.set_ports(word, PortState::Waiting, bit);
        }
    }
    position
}

/// Takes back the port of a connection that has not ended after all.
#[inline(never)]
pub(super) fn retake<T: Tables>(tables: &T, backend: u32, leaves: &FlowKey<T::Address>) -> u32 {
    let (Some(settings), Some(backend)) = (tables.settings(), tables.backend(backend)) else {
        return NO_PORT;
    };
    if backend.mode != mode::NAT {
        return NO_PORT;
    }
    let Some(position) = position(tables, settings, leaves.source, leaves.source_port) else {
        return NO_PORT;
    };
    let word = backend.port_pool * settings.pool_words + position / PORTS_PER_WORD;
    let bit = 1 << (position % PORTS_PER_WORD);
    tables.set_ports(word, PortState::Used, bit);
    tables.clear_ports(word, PortState::Waiting, bit);
    position
}

/// The two sets that a [`PortWord`](crate::maps::PortWord) keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    Used,
    Waiting,
}

/// Takes a port out of `pool` for the workbench's claim, which then leaves with it; returns its position, or
/// [`NO_PORT`].
#[inline(never)]
pub(super) fn take<T: Tables>(tables: &T, pool: u32) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_PORT;
    };
    let mut position = take_free(tables, settings, pool);
    if position == NO_PORT {
        position = take_waiting(tables, settings, pool);
    }
    if position == NO_PORT {
        position = take_used(tables, settings, pool);
    }
    if position != NO_PORT {
        aim(tables, settings, position);
        supersede(tables, settings, pool, position);
    }
    position
}

#[inline(never)]
fn take_free<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let mut search = FreeSearch {
        pool,
        first: tables.pool(pool).map_or(0, |it| it.next_free),
        found: tables.veiled(NO_PORT),
    };
    // Once more the first word, whose positions before the first one come last.
    tables.repeat(settings.pool_words + 1, &mut search);
    if search.found != NO_PORT
        && let Some(mut pool) = tables.pool(pool)
    {
        pool.next_free = search.found + 1;
    }
    search.found
}

/// The search for a port that is known to be free, one word a step.
#[repr(C)]
struct FreeSearch {
    pool: u32,
    first: u32,
    found: u32,
}

impl Step for FreeSearch {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let Some(settings) = tables.settings() else {
            return true;
        };
        let word = word_at(settings, self.first, number);
        let index = self.pool * settings.pool_words + word;
        let Some(bits) = tables.port_word(index) else {
            return true;
        };
        let free = !bits.used & ports_of(settings, word) & from_first(self.first, number);
        if free == 0 {
            return false;
        }
        let bit = free & free.wrapping_neg();
        // Another processor may have taken it since.
        if tables.set_ports(index, PortState::Used, bit) & bit != 0 {
            return false;
        }
        let position = word * PORTS_PER_WORD + free.trailing_zeros();
        aim(tables, settings, position);
        if is_in_use(examine(tables, self.pool, position)) {
            return false;
        }
        self.found = position;
        true
    }
}

#[inline(never)]
fn take_waiting<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let mut search = WaitingSearch {
        longest_ns: tables.veiled(0).into(),
        pool,
        first: tables.pool(pool).map_or(0, |it| it.next_waiting),
        found: tables.veiled(NO_PORT),
        compared: tables.veiled(0),
    };
    tables.repeat(settings.pool_words + 1, &mut search);
    let found = search.found;
    if found == NO_PORT {
        return NO_PORT;
    }
    if let Some(mut pool) = tables.pool(pool) {
        pool.next_waiting = found + 1;
    }
    let index = pool * settings.pool_words + found / PORTS_PER_WORD;
    let bit = 1 << (found % PORTS_PER_WORD);
    // Another processor may have taken it since.
    if tables.clear_ports(index, PortState::Waiting, bit) & bit == 0 {
        return NO_PORT;
    }
    found
}

/// The search for a port whose connection is over for long enough, one word a step.
#[repr(C)]
struct WaitingSearch {
    longest_ns: u64,
    pool: u32,
    first: u32,
    found: u32,
    compared: u32,
}

impl Step for WaitingSearch {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let Some(settings) = tables.settings() else {
            return true;
        };
        let word = word_at(settings, self.first, number);
        let index = self.pool * settings.pool_words + word;
        let Some(bits) = tables.port_word(index) else {
            return true;
        };
        let waiting = bits.waiting & ports_of(settings, word) & from_first(self.first, number);
        if waiting == 0 {
            return false;
        }
        let position = word * PORTS_PER_WORD + waiting.trailing_zeros();
        aim(tables, settings, position);
        let seen = examine(tables, self.pool, position);
        if is_in_use(seen) {
            tables.clear_ports(index, PortState::Waiting, waiting & waiting.wrapping_neg());
            return false;
        }
        let silence_ns = seen & SILENCE;
        if silence_ns >= self.longest_ns {
            self.longest_ns = silence_ns;
            self.found = position;
        }
        self.compared += 1;
        silence_ns > TIME_WAIT_NS || self.compared == WAITING_COMPARED
    }
}

#[inline(never)]
fn take_used<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let positions = settings.pool_words * PORTS_PER_WORD;
    let mut search = UsedSearch {
        merit: tables.veiled(0).into(),
        pool,
        first: tables.random().checked_rem(positions).unwrap_or(0),
        found: tables.veiled(NO_PORT),
        suspect: tables.veiled(0),
        matches: tables.veiled(0),
        compared: tables.veiled(0),
    };
    tables.repeat(positions, &mut search);
    if search.merit < HALF_OPEN && search.matches < SUSPICIOUS {
        return NO_PORT;
    }
    search.found
}

/// How many of [`USED_COMPARED`] connections make their client one that holds most ports.
const SUSPICIOUS: u32 = USED_COMPARED / 4;

/// The search for a port in use whose holder may lose it, one position a step.
#[repr(C)]
struct UsedSearch {
    /// How much speaks for `found`.
    merit: u64,
    pool: u32,
    first: u32,
    found: u32,
    /// The client that holds most of the ports looked at, if one holds more than half (Boyer and Moore, 1981),
    /// and how many it was seen to hold.
    suspect: u32,
    matches: u32,
    compared: u32,
}

impl Step for UsedSearch {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let Some(settings) = tables.settings() else {
            return true;
        };
        let positions = settings.pool_words * PORTS_PER_WORD;
        let position = (self.first + number).checked_rem(positions).unwrap_or(0);
        let bit = 1_u64 << (position % PORTS_PER_WORD);
        if ports_of(settings, position / PORTS_PER_WORD) & bit == 0 {
            return false;
        }
        aim(tables, settings, position);
        let seen = examine(tables, self.pool, position);
        if !is_in_use(seen) {
            self.merit = u64::MAX;
            self.found = position;
            return true;
        }
        let client = tables.workbench().map_or(0, |bench| bench.claim.holder);
        let is_half_open = seen & HALF_OPEN != 0;
        if !is_half_open && self.matches == 0 {
            self.suspect = client;
        }
        let is_suspect = !is_half_open && client == self.suspect;
        self.matches = if is_suspect {
            self.matches + 1
        } else {
            self.matches.saturating_sub(u32::from(!is_half_open))
        };
        let may_lose = is_half_open || is_suspect && seen > SILENT_NS;
        if may_lose && seen >= self.merit {
            self.merit = seen;
            self.found = position;
        }
        self.compared += 1;
        self.compared == USED_COMPARED
    }
}

/// What [`examine`] says of a port beside the silence of its holder, in nanoseconds.
const SILENCE: u64 = HALF_OPEN - 1;
const HALF_OPEN: u64 = 1 << 61;
const NOT_IN_USE: u64 = 1 << 62;

#[inline(always)]
fn is_in_use(seen: u64) -> bool {
    seen & NOT_IN_USE == 0
}

/// Looks up who holds the port with which the workbench's claim leaves, and since when no packet came. The keys
/// stand in the workbench: on the stack is no room for them.
#[inline(never)]
fn examine<T: Tables>(tables: &T, pool: u32, position: u32) -> u64 {
    let (Some(settings), Some(mut bench)) = (tables.settings(), tables.workbench()) else {
        return 0;
    };
    let claim = &mut bench.claim;
    let now = tables.now_ns();
    if let Some(handshake) = handshake_from(tables, settings, pool, position)
        && handshake.leaves.is(&claim.leaves)
        && is_under_way(&handshake, settings, now)
    {
        return HALF_OPEN | now.saturating_sub(handshake.syn_ns) & SILENCE;
    }
    claim.reply_key = claim.leaves.reversed();
    let Some(holder) = tables.established(&claim.reply_key) else {
        return NOT_IN_USE | SILENCE;
    };
    claim.request_key = holder.leaves.reversed();
    let twin = tables
        .established(&claim.request_key)
        .filter(|twin| are_twins(&claim.reply_key, twin));
    let silence_ns = silence_ns(&holder, twin.as_deref(), now) & SILENCE;
    if holder.superseded == 1 || is_over(settings, &holder, twin.as_deref(), now) {
        return NOT_IN_USE | silence_ns;
    }
    claim.holder = claim.request_key.source.word();
    silence_ns
}

/// Takes the port with which the workbench's claim leaves from its last holder: no packet of that connection
/// goes on from here.
#[inline(never)]
fn supersede<T: Tables>(tables: &T, settings: &Settings, pool: u32, position: u32) -> u32 {
    let Some(mut bench) = tables.workbench() else {
        return 0;
    };
    let claim = &mut bench.claim;
    if let Some(mut handshake) = handshake_from(tables, settings, pool, position)
        && handshake.leaves.is(&claim.leaves)
    {
        handshake.backend = 0;
    }
    claim.reply_key = claim.leaves.reversed();
    let Some(mut holder) = tables.established(&claim.reply_key) else {
        return 0;
    };
    holder.superseded = 1;
    claim.request_key = holder.leaves.reversed();
    drop(holder);
    if let Some(mut twin) = tables.established(&claim.request_key)
        && are_twins(&claim.reply_key, &twin)
    {
        twin.superseded = 1;
        uncount(tables, &mut twin);
    }
    0
}

/// The last handshake that was begun from a port of a pool.
#[inline(always)]
fn handshake_from<'a, T: Tables>(
    tables: &'a T,
    settings: &Settings,
    pool: u32,
    position: u32,
) -> Option<T::Place<'a>> {
    let place = tables.port_handshake(index(settings, pool, position))?;
    tables.handshake(place.wrapping_sub(1))
}

/// Makes the workbench's claim leave from the port at `position`.
#[inline(always)]
fn aim<T: Tables>(tables: &T, settings: &Settings, position: u32) {
    let Some(mut bench) = tables.workbench() else {
        return;
    };
    let words = PORTS_PER_WORD * settings.source_words;
    let number = position.checked_div(words).unwrap_or(0);
    let port = u32::from(settings.nat_port_first) + (position - number * words);
    bench.claim.leaves.source_port = (port as u16).to_be_bytes();
    if sources::<T::Address>(settings) != 0
        && let Some(source) = tables.nat_source(family_offset::<T::Address>() + number)
    {
        bench.claim.leaves.source = T::Address::from_mapped(&source);
    }
}

/// The position of one of the manager's ports towards workers.
#[inline(always)]
fn position<T: Tables>(
    tables: &T,
    settings: &Settings,
    address: T::Address,
    port: [u8; 2],
) -> Option<u32> {
    let offset = u16::from_be_bytes(port).wrapping_sub(settings.nat_port_first);
    if offset >= settings.nat_port_count {
        return None;
    }
    let mut number = 0;
    for source in 0..sources::<T::Address>(settings).min(MOST_NAT_SOURCES) {
        let candidate = tables.nat_source(family_offset::<T::Address>() + source)?;
        if T::Address::from_mapped(&candidate) == address {
            number = source;
        }
    }
    Some(number * settings.source_words * PORTS_PER_WORD + u32::from(offset))
}

/// How many addresses for NAT are configured of this family.
#[inline(always)]
fn sources<A: Address>(settings: &Settings) -> u32 {
    let [v4, v6] = settings.nat_sources;
    if A::IS_V4 { v4.into() } else { v6.into() }
}

/// Where the addresses of this family begin in map `nat_sources`.
#[inline(always)]
fn family_offset<A: Address>() -> u32 {
    if A::IS_V4 { 0 } else { MOST_NAT_SOURCES }
}

/// Index in map `port_handshakes`.
#[inline(always)]
fn index(settings: &Settings, pool: u32, position: u32) -> u32 {
    pool * settings.pool_words * PORTS_PER_WORD + position
}

/// The word of a pool at which the step `number` looks of a search that began at the position `first`.
#[inline(always)]
fn word_at(settings: &Settings, first: u32, number: u32) -> u32 {
    (first / PORTS_PER_WORD + number)
        .checked_rem(settings.pool_words)
        .unwrap_or(0)
}

/// The positions of a pool's word that stand for ports: the last word of an address may have fewer.
#[inline(always)]
fn ports_of(settings: &Settings, word: u32) -> u64 {
    let word = word.checked_rem(settings.source_words).unwrap_or(0);
    let ports = u32::from(settings.nat_port_count).saturating_sub(word * PORTS_PER_WORD);
    if ports >= PORTS_PER_WORD {
        u64::MAX
    } else {
        (1 << ports) - 1
    }
}

/// The positions of the first word that come after the one at which the search begins.
#[inline(always)]
fn from_first(first: u32, number: u32) -> u64 {
    if number == 0 {
        u64::MAX << (first % PORTS_PER_WORD)
    } else {
        u64::MAX
    }
}
