//! Allocation of the source port of a new connection to a worker.
//!
//! A worker that closes a connection first may hold the tuple in TIME_WAIT for a minute. It answers another
//! client's SYN on that tuple with a bare ACK. So a new connection takes the first available of:
//!
//! 1. a free port: never used, or its last connection was reset or closed by the client first;
//! 2. the port of the last connection from the same address and port of the client, because the worker accepts a SYN
//!    whose sequence number or timestamp continues those of the connection in TIME_WAIT (RFC 6191);
//! 3. the port that the client's port selects, if its last connection was of the same address: so that the client gets
//!    the same port each time, also if its connections alternate between workers;
//! 4. of some ports whose connection is over, the one that has been idle for longest;
//! 5. a port whose connection is over without a closing packet: idle for too long, evicted, or an abandoned
//!    handshake. If there is none: the port of the oldest handshake, or of the connection idle for longest of
//!    a client that holds most ports.
//!
//! A search begins where the last one ended, so that a port rests for as long as possible. After one that found none,
//! there is no other before a packet releases a port. The bits are hints: [`inspect`] looks up whether a port is in use.

use super::{
    Step, Tables, client,
    flow::{idle_ns, is_over, is_reverse_of, uncount},
    pending_connection::PendingConnection,
    slot::{NO_SLOT, is_pending},
};
use crate::{
    address::Address,
    maps::{
        FlowKey, MAX_NAT_SOURCES, NO_PORT, PORTS_PER_WORD, ServiceKey, Settings, TIME_WAIT_NS,
        direction, ended, mode,
    },
};

/// Most ports in TIME_WAIT that a search compares.
const WAITING_COMPARED: u32 = 8;
/// Most ports in use that a search inspects.
const USED_COMPARED: u32 = 32;
/// A connection that was idle for less keeps its port.
const MIN_IDLE_NS: u64 = 60_000_000_000;

/// Whether the worker may hold the tuple after a connection's end.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWait {
    None,
    /// In TIME_WAIT, or as a connection whose end it has not seen.
    Possible,
}

impl TimeWait {
    /// From the bits of both directions, and the direction that ended second: the side that closes first enters
    /// TIME_WAIT (RFC 9293, section 3.6).
    #[inline(always)]
    pub(super) fn after(ended_bits: u8, second: u8) -> Self {
        if ended_bits & ended::RESET != 0 || second == direction::REPLY {
            Self::None
        } else {
            Self::Possible
        }
    }
}

/// The slot of the last handshake from the port that a packet with the tuple `key` is sent to.
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
        return NO_SLOT;
    };
    let Some(pool) = tables.pool_of(&endpoint) else {
        return NO_SLOT;
    };
    let index = index(settings, pool, position);
    // 0: none.
    let slot = tables.port_handshake(index).unwrap_or(0);
    slot.wrapping_sub(1)
}

/// Records `slot` as the last handshake of its port.
#[inline(always)]
pub(super) fn record_handshake<T: Tables>(
    tables: &T,
    backend: u32,
    translated: &FlowKey<T::Address>,
    slot: u32,
) {
    if let Some((settings, pool, position)) = nat_port(tables, backend, translated) {
        tables.set_port_handshake(index(settings, pool, position), slot + 1);
    }
}

/// Releases the port of a connection to `backend` with the tuple `translated`.
#[inline(always)]
pub fn release<T: Tables>(
    tables: &T,
    backend: u32,
    time_wait: TimeWait,
    translated: &FlowKey<T::Address>,
) -> u32 {
    let Some((settings, pool, position)) = nat_port(tables, backend, translated) else {
        return NO_PORT;
    };
    let (word, bit) = word_and_bit(settings, pool, position);
    match time_wait {
        TimeWait::None => {
            tables.clear_ports(word, PortState::Waiting, bit);
            tables.clear_ports(word, PortState::Used, bit);
        }
        TimeWait::Possible => {
            tables.set_ports(word, PortState::Waiting, bit);
        }
    }
    if let Some(mut pool) = tables.pool(pool) {
        let next = match time_wait {
            TimeWait::None => &mut pool.next_free,
            TimeWait::Possible => &mut pool.next_waiting,
        };
        if *next == NO_PORT {
            *next = position;
        }
    }
    position
}

/// Marks the port of a revived connection as used again.
#[inline(always)]
pub fn reclaim<T: Tables>(tables: &T, backend: u32, translated: &FlowKey<T::Address>) -> u32 {
    let Some((settings, pool, position)) = nat_port(tables, backend, translated) else {
        return NO_PORT;
    };
    let (word, bit) = word_and_bit(settings, pool, position);
    tables.set_ports(word, PortState::Used, bit);
    tables.clear_ports(word, PortState::Waiting, bit);
    position
}

/// The two sets of a [`PortWord`](crate::maps::PortWord).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    Used,
    Waiting,
}

/// Allocates a port of `pool` for the pending connection and sets its source. Returns the position, or `NO_PORT`.
#[inline(always)]
pub fn allocate<T: Tables>(tables: &T, pool: u32) -> u32 {
    let Some(settings) = tables.settings() else {
        return NO_PORT;
    };
    let mut position = allocate_free(tables, settings, pool);
    if position != NO_PORT {
        return position;
    }
    position = allocate_last(tables, settings, pool);
    if position == NO_PORT {
        position = allocate_selected(tables, settings, pool);
    }
    if position == NO_PORT {
        position = allocate_waiting(tables, settings, pool);
    }
    if position == NO_PORT {
        position = allocate_used(tables, settings, pool);
    }
    if position != NO_PORT {
        set_source(tables, settings, position);
        supersede(tables, settings, pool, position, true);
    }
    position
}

/// Allocates a port that is not in use, and sets the pending connection's source.
#[inline(never)]
fn allocate_free<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let first = tables.pool(pool).map_or(0, |it| it.next_free);
    if first == NO_PORT {
        return NO_PORT;
    }
    let mut search = FreeSearch {
        pool,
        first,
        found: tables.barrier_var(NO_PORT),
        has_entry: tables.barrier_var(0),
    };
    // The first word is visited again at the end, for its positions before the first one.
    tables.repeat(settings.pool_words + 1, &mut search);
    if let Some(mut pool) = tables.pool(pool) {
        pool.next_free = after(search.found);
    }
    if search.found == NO_PORT {
        return NO_PORT;
    }
    supersede(tables, settings, pool, search.found, search.has_entry != 0);
    search.found
}

/// The search for a free port, one word a step.
#[repr(C)]
struct FreeSearch {
    pool: u32,
    first: u32,
    found: u32,
    /// 1: the flow table has a connection from the port.
    has_entry: u32,
}

impl<T: Tables> Step<T> for FreeSearch {
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
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
        // Another processor may have allocated it meanwhile.
        if tables.set_ports(index, PortState::Used, bit) & bit != 0 {
            return false;
        }
        let position = word * PORTS_PER_WORD + free.trailing_zeros();
        set_source(tables, settings, position);
        let seen = tables.inspect(self.pool, position);
        if is_in_use(seen) {
            return false;
        }
        self.found = position;
        self.has_entry = u32::from(seen & NO_ENTRY == 0);
        true
    }
}

/// Allocates the port of the client's last connection, unless another client has used the port since then. Linux
/// derives sequence numbers and timestamps from the addresses and ports, so that on another port each may be lower.
#[inline(never)]
fn allocate_last<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let Some(scratch) = tables.flow_scratch() else {
        return NO_PORT;
    };
    let Some(last) = tables.established(&scratch.pending.client) else {
        return NO_PORT;
    };
    let (source, port) = (last.translated.source, last.translated.source_port);
    drop(last);
    drop(scratch);
    let Some(position) = position(tables, settings, source, port) else {
        return NO_PORT;
    };
    allocate_from_client(tables, settings, pool, position, |it| {
        it.request_key.is(&it.client)
    })
}

/// Allocates the port that the client's port selects. No two ports of one address select the same if there are as many.
#[inline(never)]
fn allocate_selected<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let Some(scratch) = tables.flow_scratch() else {
        return NO_PORT;
    };
    let client = &scratch.pending.client;
    let address = client.source.word();
    let port = address.wrapping_add(u16::from_be_bytes(client.source_port).into());
    drop(scratch);
    let (Some(source), Some(port)) = (
        address.checked_rem(sources::<T::Address>(settings).max(1)),
        port.checked_rem(settings.nat_port_count.into()),
    ) else {
        return NO_PORT;
    };
    let position = source * settings.source_words * PORTS_PER_WORD + port;
    allocate_from_client(tables, settings, pool, position, |it| {
        it.request_key.source == it.client.source
    })
}

/// Allocates the port at `position` if it is in TIME_WAIT and `is_of_client` the connection that [`inspect`] finds.
#[inline(always)]
fn allocate_from_client<T: Tables>(
    tables: &T,
    settings: &Settings,
    pool: u32,
    position: u32,
    is_of_client: impl FnOnce(&PendingConnection<T::Address>) -> bool,
) -> u32 {
    set_source(tables, settings, position);
    let seen = tables.inspect(pool, position);
    if is_in_use(seen) || seen & NO_ENTRY != 0 {
        return NO_PORT;
    }
    if !tables
        .flow_scratch()
        .is_some_and(|it| is_of_client(&it.pending))
    {
        return NO_PORT;
    }
    let (word, bit) = word_and_bit(settings, pool, position);
    // Another processor may have allocated it meanwhile.
    if tables.clear_ports(word, PortState::Waiting, bit) & bit == 0 {
        return NO_PORT;
    }
    position
}

#[inline(never)]
fn allocate_waiting<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let first = tables.pool(pool).map_or(0, |it| it.next_waiting);
    if first == NO_PORT {
        return NO_PORT;
    }
    let mut search = WaitingSearch {
        longest_ns: tables.barrier_var(0).into(),
        pool,
        first,
        found: tables.barrier_var(NO_PORT),
        compared: tables.barrier_var(0),
    };
    tables.repeat(settings.pool_words + 1, &mut search);
    let found = search.found;
    if let Some(mut pool) = tables.pool(pool) {
        pool.next_waiting = after(found);
    }
    if found == NO_PORT {
        return NO_PORT;
    }
    let (word, bit) = word_and_bit(settings, pool, found);
    // Another processor may have allocated it meanwhile.
    if tables.clear_ports(word, PortState::Waiting, bit) & bit == 0 {
        return NO_PORT;
    }
    found
}

/// The search for the port that has been in TIME_WAIT for longest, one word a step.
#[repr(C)]
struct WaitingSearch {
    longest_ns: u64,
    pool: u32,
    first: u32,
    found: u32,
    compared: u32,
}

impl<T: Tables> Step<T> for WaitingSearch {
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
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
        set_source(tables, settings, position);
        let seen = tables.inspect(self.pool, position);
        if is_in_use(seen) {
            tables.clear_ports(index, PortState::Waiting, waiting & waiting.wrapping_neg());
            return false;
        }
        let idle_ns = seen & IDLE_MASK;
        if idle_ns >= self.longest_ns {
            self.longest_ns = idle_ns;
            self.found = position;
        }
        self.compared += 1;
        idle_ns > TIME_WAIT_NS || self.compared == WAITING_COMPARED
    }
}

#[inline(never)]
fn allocate_used<T: Tables>(tables: &T, settings: &Settings, pool: u32) -> u32 {
    let positions = settings.pool_words * PORTS_PER_WORD;
    let mut search = UsedSearch {
        score: tables.barrier_var(0).into(),
        pool,
        first: tables.random().checked_rem(positions).unwrap_or(0),
        found: tables.barrier_var(NO_PORT),
        suspect: tables.barrier_var(0),
        matches: tables.barrier_var(0),
        compared: tables.barrier_var(0),
    };
    tables.repeat(positions, &mut search);
    if search.score < HALF_OPEN && search.matches < SUSPICIOUS {
        return NO_PORT;
    }
    search.found
}

/// Matches among [`USED_COMPARED`] connections from which a client counts as the one that holds most ports.
const SUSPICIOUS: u32 = USED_COMPARED / 4;

/// The search for a port to take from its holder, one position a step.
#[repr(C)]
struct UsedSearch {
    /// Score of `found`.
    score: u64,
    pool: u32,
    first: u32,
    found: u32,
    /// Candidate for the client that holds more than half of the inspected ports, and its votes (Boyer and Moore,
    /// 1981).
    suspect: u32,
    matches: u32,
    compared: u32,
}

impl<T: Tables> Step<T> for UsedSearch {
    #[inline(always)]
    fn step(&mut self, tables: &T, number: u32) -> bool {
        let Some(settings) = tables.settings() else {
            return true;
        };
        let positions = settings.pool_words * PORTS_PER_WORD;
        let position = (self.first + number).checked_rem(positions).unwrap_or(0);
        let bit = 1_u64 << (position % PORTS_PER_WORD);
        if ports_of(settings, position / PORTS_PER_WORD) & bit == 0 {
            return false;
        }
        set_source(tables, settings, position);
        let seen = tables.inspect(self.pool, position);
        if !is_in_use(seen) {
            self.score = u64::MAX;
            self.found = position;
            return true;
        }
        let client = tables
            .flow_scratch()
            .map_or(0, |scratch| scratch.pending.holder);
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
        let is_candidate = is_half_open || is_suspect && seen > MIN_IDLE_NS;
        if is_candidate && seen >= self.score {
            self.score = seen;
            self.found = position;
        }
        self.compared += 1;
        self.compared == USED_COMPARED
    }
}

/// Flags that [`inspect`] returns with the holder's idle time in nanoseconds.
const IDLE_MASK: u64 = HALF_OPEN - 1;
const HALF_OPEN: u64 = 1 << 61;
const NOT_IN_USE: u64 = 1 << 62;
/// No connection is in the flow table.
const NO_ENTRY: u64 = 1 << 63;

#[inline(always)]
fn is_in_use(seen: u64) -> bool {
    seen & NOT_IN_USE == 0
}

/// Looks up the holder of the pending connection's port, and its idle time. The keys are in the flow scratch, because
/// the stack is too small.
#[inline(always)]
pub fn inspect<T: Tables>(tables: &T, pool: u32, position: u32) -> u64 {
    let (Some(settings), Some(mut scratch)) = (tables.settings(), tables.flow_scratch()) else {
        return 0;
    };
    let pending = &mut scratch.pending;
    let now = tables.now_ns();
    if let Some(handshake) = handshake_from(tables, settings, pool, position)
        && handshake.translated.is(&pending.translated)
        && is_pending(&handshake, settings, now)
    {
        return HALF_OPEN | now.saturating_sub(handshake.syn_ns) & IDLE_MASK;
    }
    pending.reply_key = pending.translated.reversed();
    let Some(holder) = tables.established(&pending.reply_key) else {
        return NOT_IN_USE | NO_ENTRY | IDLE_MASK;
    };
    pending.request_key = holder.translated.reversed();
    let reverse = tables
        .established(&pending.request_key)
        .filter(|reverse| is_reverse_of(&pending.reply_key, reverse));
    let idle_ns = idle_ns(&holder, reverse.as_deref(), now) & IDLE_MASK;
    if holder.superseded == 1 || is_over(settings, &holder, reverse.as_deref(), now) {
        return NOT_IN_USE | idle_ns;
    }
    pending.holder = pending.request_key.source.word();
    idle_ns
}

/// Supersedes the last holder of the pending connection's port. `has_entry`: it may be in the flow table.
#[inline(never)]
fn supersede<T: Tables>(
    tables: &T,
    settings: &Settings,
    pool: u32,
    position: u32,
    has_entry: bool,
) -> u32 {
    let Some(mut scratch) = tables.flow_scratch() else {
        return 0;
    };
    let pending = &mut scratch.pending;
    if let Some(mut handshake) = handshake_from(tables, settings, pool, position)
        && handshake.translated.is(&pending.translated)
    {
        if handshake.is_valid() {
            client::count(tables, false, &handshake.client.source);
        }
        handshake.backend = 0;
    }
    if !has_entry {
        return 0;
    }
    pending.reply_key = pending.translated.reversed();
    let Some(mut holder) = tables.established(&pending.reply_key) else {
        return 0;
    };
    holder.superseded = 1;
    pending.request_key = holder.translated.reversed();
    drop(holder);
    if let Some(mut reverse) = tables.established(&pending.request_key)
        && is_reverse_of(&pending.reply_key, &reverse)
    {
        reverse.superseded = 1;
        uncount(tables, &pending.request_key.source, &mut reverse);
    }
    0
}

/// The last handshake from a port of a pool.
#[inline(always)]
fn handshake_from<'a, T: Tables>(
    tables: &'a T,
    settings: &Settings,
    pool: u32,
    position: u32,
) -> Option<T::Slot<'a>> {
    let slot = tables.port_handshake(index(settings, pool, position))?;
    tables.handshake(slot.wrapping_sub(1))
}

/// Sets the pending connection's source to the port at `position`.
#[inline(always)]
fn set_source<T: Tables>(tables: &T, settings: &Settings, position: u32) {
    let Some(mut scratch) = tables.flow_scratch() else {
        return;
    };
    let words = PORTS_PER_WORD * settings.source_words;
    let number = position.checked_div(words).unwrap_or(0);
    let port = u32::from(settings.nat_port_first) + (position - number * words);
    scratch.pending.translated.source_port = (port as u16).to_be_bytes();
    if sources::<T::Address>(settings) != 0
        && let Some(source) = tables.nat_source(family_offset::<T::Address>() + number)
    {
        scratch.pending.translated.source = T::Address::from_mapped(&source);
    }
}

/// The settings, and the pool and position of the port of a connection to `backend` with the tuple `translated`; `None`
/// if it has no NAT port.
#[inline(always)]
fn nat_port<'a, T: Tables>(
    tables: &'a T,
    backend: u32,
    translated: &FlowKey<T::Address>,
) -> Option<(&'a Settings, u32, u32)> {
    let (settings, backend) = (tables.settings()?, tables.backend(backend)?);
    if backend.mode != mode::NAT {
        return None;
    }
    let position = position(tables, settings, translated.source, translated.source_port)?;
    Some((settings, backend.port_pool, position))
}

/// The position of a NAT port of the manager.
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
    let sources = sources::<T::Address>(settings);
    // A peer's address is none of them.
    let mut number = if sources == 0 { 0 } else { NO_PORT };
    // The verifier of Linux 6.1 needs a constant bound.
    for source in 0..MAX_NAT_SOURCES {
        if source >= sources {
            break;
        }
        let candidate = tables.nat_source(family_offset::<T::Address>() + source)?;
        if T::Address::from_mapped(&candidate) == address {
            number = source;
        }
    }
    if number == NO_PORT {
        return None;
    }
    Some(number * settings.source_words * PORTS_PER_WORD + u32::from(offset))
}

/// Configured NAT addresses of this family.
#[inline(always)]
fn sources<A: Address>(settings: &Settings) -> u32 {
    let [v4, v6] = settings.nat_sources;
    if A::IS_V4 { v4.into() } else { v6.into() }
}

/// Index in map `nat_sources` of this family's first address.
#[inline(always)]
fn family_offset<A: Address>() -> u32 {
    if A::IS_V4 { 0 } else { MAX_NAT_SOURCES }
}

/// Index in map `port_handshakes`.
#[inline(always)]
fn index(settings: &Settings, pool: u32, position: u32) -> u32 {
    pool * settings.pool_words * PORTS_PER_WORD + position
}

/// Index in map `port_words` of the word with a port, and the port's bit.
#[inline(always)]
fn word_and_bit(settings: &Settings, pool: u32, position: u32) -> (u32, u64) {
    let word = pool * settings.pool_words + position / PORTS_PER_WORD;
    (word, 1 << (position % PORTS_PER_WORD))
}

/// Where the next search begins after one that `found` a port, or [`NO_PORT`]. A port that another processor releases
/// meanwhile, behind the search, is found after the next released one.
#[inline(always)]
fn after(found: u32) -> u32 {
    if found == NO_PORT { NO_PORT } else { found + 1 }
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
