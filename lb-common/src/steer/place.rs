//! Where a handshake is kept, and which of the manager's ports it may take towards its worker.
//!
//! Each port has one place, for one handshake at a time. The ports are laid out in rows, and a
//! client's address and port name a column: its handshake stands in one of that column's places, and
//! a note for each column says whose. So a client's packets find the handshake by one look at the
//! notes, and a worker's find it by the port that they are sent to. Where chance has given too many
//! clients one column, and all its ports towards a worker are taken, another column serves.

use super::{Hook, Step, Tables, flow::frees};
use crate::{
    address::Address,
    maps::{FlowKey, Handshake, ROWS, Settings},
};

/// One of the columns that a client names.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    First,
    Other,
}

/// The places and ports that a client's connection may take, in the order in which they are tried.
///
/// The first one adds the client's port to an offset that depends on its address only: as long as
/// the range is no smaller than the client's own, a client's connections never share a port, and
/// a port comes back to the worker no sooner than to the client, whose TIME_WAIT then protects both.
/// The other column is where a hash of both says.
#[derive(Clone, Copy)]
struct Candidates {
    first_port: u32,
    columns: u32,
    /// At least 1, where a connection needs a place although there are no ports.
    rows: u32,
    column: u32,
    row: u32,
}

impl Candidates {
    #[inline(always)]
    fn of_client<A: Address>(settings: &Settings, client: &FlowKey<A>, column: Column) -> Self {
        let columns = settings.half_open_columns;
        let rows = quotient(settings.nat_port_count.into(), columns).clamp(1, ROWS);
        let port = u32::from(u16::from_be_bytes(client.source_port));
        let start = match column {
            Column::First => {
                (client.source.word().wrapping_mul(0x9e37_79b1) >> 8).wrapping_add(port)
            }
            Column::Other => {
                (client.source.word() ^ port.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35)
                    >> 8
            }
        };
        let offset = remainder(start, rows * columns);
        Self {
            first_port: settings.nat_port_first.into(),
            columns,
            rows,
            column: remainder(offset, columns),
            row: quotient(offset, columns),
        }
    }

    /// Host order.
    #[inline(always)]
    fn port(self, attempt: u32) -> u32 {
        let row = remainder(self.row + attempt, self.rows);
        self.first_port + row * self.columns + self.column
    }

    #[inline(always)]
    fn place(self, attempt: u32) -> u32 {
        self.column * ROWS + remainder(self.row + attempt, self.rows)
    }
}

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
    let port = u16::from_be_bytes(key.destination_port);
    let offset = u32::from(port.wrapping_sub(settings.nat_port_first));
    let row = quotient(offset, settings.half_open_columns);
    if offset >= u32::from(settings.nat_port_count) || row >= ROWS {
        return NOWHERE;
    }
    let place = remainder(offset, settings.half_open_columns) * ROWS + row;
    if let Some(handshake) = tables.handshake(place)
        && handshake.leaves.is(&leaves)
        && is_under_way(&handshake, settings, tables.now_ns())
    {
        return place;
    }
    NOWHERE
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
    let note = note(client);
    for column in [Column::First, Column::Other] {
        let Candidates { column, .. } = Candidates::of_client(settings, client, column);
        let Some(notes) = tables.notes(column) else {
            return NOWHERE;
        };
        for row in 0..ROWS {
            if notes[row as usize] != note {
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
    }
    NOWHERE
}

/// Notes whose handshake is kept at `place`.
#[inline(always)]
pub(super) fn take_note<T: Tables>(tables: &T, place: u32, client: &FlowKey<T::Address>) {
    if let Some(mut notes) = tables.notes(place / ROWS) {
        notes[(place % ROWS) as usize] = note(client);
    }
}

/// A client's address and port as one well-mixed word, never 0.
#[inline(always)]
fn note<A: Address>(client: &FlowKey<A>) -> u32 {
    let port = u32::from(u16::from_be_bytes(client.source_port));
    (client.source.word() ^ port.rotate_left(16)).wrapping_mul(0x85eb_ca6b) | 1
}

/// What is found instead of a place where no port is free.
pub(super) const TAKEN: u32 = u32::MAX;

/// Looks for a place for the workbench's claim: a free one, or the one whose handshake waited
/// longest, and with it for a port towards the worker, if it needs one, that nobody else has.
#[inline(always)]
pub(super) fn room<T: Tables>(tables: &T, needs_port: bool) -> u32 {
    let mut search = Search {
        longest_ns: tables.veiled(0).into(),
        place: tables.veiled(TAKEN),
        port: tables.veiled(0),
        needs_port: needs_port.into(),
    };
    // Without a port to find, the first column has a place in any case.
    let columns = if needs_port { 2 } else { 1 };
    tables.repeat(columns * ROWS, &mut search);
    if needs_port
        && search.place != TAKEN
        && let Some(mut bench) = tables.workbench()
    {
        bench.claim.leaves.source_port = (search.port as u16).to_be_bytes();
    }
    search.place
}

/// The search for a place, one row of a column a step.
#[repr(C)]
struct Search {
    /// How long the handshake in the way of `place` was silent.
    longest_ns: u64,
    /// The best until now, and its port, host order.
    place: u32,
    port: u32,
    needs_port: u32,
}

impl Step for Search {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, number: u32) -> bool {
        let is_first = number < ROWS;
        if !is_first && self.place != TAKEN {
            return true;
        }
        let Some(settings) = tables.settings() else {
            return true;
        };
        let Some(mut bench) = tables.workbench() else {
            return true;
        };
        let column = if is_first {
            Column::First
        } else {
            Column::Other
        };
        let candidates = Candidates::of_client(settings, &bench.claim.client, column);
        let attempt = number % ROWS;
        if attempt >= candidates.rows {
            return false;
        }
        let port = candidates.port(attempt);
        if self.needs_port == 1 {
            bench.claim.leaves.source_port = (port as u16).to_be_bytes();
        }
        drop(bench);
        let place = candidates.place(attempt);
        let Some(handshake) = tables.handshake(place) else {
            return true;
        };
        let now = tables.now_ns();
        let is_free = !is_under_way(&handshake, settings, now);
        let silence_ns = now.saturating_sub(handshake.syn_ns);
        drop(handshake);
        let better = is_free || self.place == TAKEN || silence_ns > self.longest_ns;
        // Where the client's own port goes on to the server, nobody but the client itself can be in
        // the way.
        if !better || !frees(tables) && self.needs_port == 1 {
            return false;
        }
        self.place = place;
        self.port = port;
        self.longest_ns = silence_ns;
        is_free
    }
}

/// Whether packets still belong to a handshake: an abandoned one's port may be another's by now.
#[inline(always)]
fn is_under_way<A: Address>(handshake: &Handshake<A>, settings: &Settings, now: u64) -> bool {
    handshake.is_whole() && now.saturating_sub(handshake.syn_ns) <= settings.half_open_idle_ns
}

#[inline(always)]
fn quotient(number: u32, divisor: u32) -> u32 {
    number.checked_div(divisor).unwrap_or(0)
}

#[inline(always)]
fn remainder(number: u32, divisor: u32) -> u32 {
    number.checked_rem(divisor).unwrap_or(0)
}
