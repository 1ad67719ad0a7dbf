//! Where a handshake is kept, and which of the manager's ports it may take towards its worker.
//!
//! The client's address and port name a group of places, so that its packets find the handshake. All
//! ports that it may take name the same group, so that the worker's packets find it, too: the ports
//! are laid out in rows as long as there are groups, and a client's ports are those of one column.

use super::{Hook, Step, Tables};
use crate::maps::{FlowKey, Handshake, Settings, WAYS};

/// How many source ports are tried towards a worker before a connection is refused.
pub const PORT_ATTEMPTS: u32 = 16;

/// The ports that a client's connection may take, in the order in which they are tried.
///
/// The first one adds the client's port to an offset that depends on its address only: as long as
/// the range is no smaller than the client's own, a client's connections never share a port, and
/// a port comes back to the worker no sooner than to the client, whose TIME_WAIT then protects both.
#[derive(Clone, Copy)]
pub(super) struct Candidates {
    first: u32,
    row: u32,
    rows: u32,
    column: u32,
    groups: u32,
}

impl Candidates {
    #[inline(always)]
    pub fn of(settings: &Settings, address: [u8; 4], port: [u8; 2]) -> Self {
        let groups = settings.half_open_groups;
        let rows = quotient(settings.nat_port_count.into(), groups);
        let address = u32::from_be_bytes(address);
        let start = (address.wrapping_mul(0x9e37_79b1) >> 8)
            .wrapping_add(u32::from(u16::from_be_bytes(port)));
        let offset = remainder(start, rows.max(1) * groups);
        Self {
            first: settings.nat_port_first.into(),
            row: quotient(offset, groups),
            rows,
            column: remainder(offset, groups),
            groups,
        }
    }

    #[inline(always)]
    pub fn of_client(settings: &Settings, client: &FlowKey) -> Self {
        Self::of(settings, client.source, client.source_port)
    }

    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.rows != 0
    }

    #[inline(always)]
    pub fn port(self, attempt: u32) -> [u8; 2] {
        let row = remainder(self.row + attempt, self.rows);
        ((self.first + row * self.groups + self.column) as u16).to_be_bytes()
    }

    /// The first place of the group.
    #[inline(always)]
    pub fn group(self) -> u32 {
        self.column * WAYS
    }
}

/// No place at all.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The place of the handshake that the answer with the tuple `key` belongs to.
///
/// A worker answers to the manager's port; the manager's own server, met on its way out, answers to
/// the client.
#[inline(never)]
pub(super) fn find_worker<T: Tables>(tables: &T, hook: Hook, key: &FlowKey) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    let first = if hook == Hook::Ingress {
        let port = u16::from_be_bytes(key.destination_port);
        let offset = u32::from(port.wrapping_sub(settings.nat_port_first));
        if offset >= u32::from(settings.nat_port_count) {
            return NOWHERE;
        }
        remainder(offset, settings.half_open_groups) * WAYS
    } else {
        Candidates::of(&settings, key.destination, key.destination_port).group()
    };
    let leaves = key.reversed();
    for way in 0..WAYS {
        let place = first + way;
        if let Some(handshake) = tables.handshake(place)
            && handshake.leaves.is(&leaves)
            && is_under_way(&handshake, &settings, tables.now_ns())
        {
            return place;
        }
    }
    NOWHERE
}

/// The place of the handshake of the client with the tuple `key`.
#[inline(never)]
pub(super) fn find_client<T: Tables>(tables: &T, key: &FlowKey) -> u32 {
    let Some(settings) = tables.settings() else {
        return NOWHERE;
    };
    let first = Candidates::of_client(&settings, key).group();
    for way in 0..WAYS {
        let place = first + way;
        if let Some(handshake) = tables.handshake(place)
            && handshake.client.is(key)
            && is_under_way(&handshake, &settings, tables.now_ns())
        {
            return place;
        }
    }
    NOWHERE
}

/// What [`room`] returns when another client's handshake leaves with the same tuple.
pub(super) const TAKEN: u32 = u32::MAX;

/// What [`room`] adds to a place that holds a handshake of the very client.
pub(super) const OWN: u32 = 1 << 31;

/// Looks for a place for the workbench's claim in the group that begins at `first`: a free one, or the
/// one whose handshake waited longest.
#[inline(always)]
pub(super) fn room<T: Tables>(tables: &T, first: u32) -> u32 {
    let mut room = Room {
        longest: 0,
        first,
        place: first,
    };
    tables.repeat(WAYS, &mut room);
    room.place
}

/// The look at a group, one of its places a step.
#[repr(C)]
struct Room {
    /// How long the handshake at `place` was silent; more than any if it is free.
    longest: u64,
    first: u32,
    /// What was found so far: a plain number, because the verifier goes through every way of putting
    /// an enum together.
    place: u32,
}

impl Step for Room {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, way: u32) -> bool {
        let place = self.first + way;
        let Some(handshake) = tables.handshake(place) else {
            return true;
        };
        let Some(settings) = tables.settings() else {
            return true;
        };
        let Some(bench) = tables.workbench() else {
            return true;
        };
        let silence = tables.now_ns().saturating_sub(handshake.last_seen_ns);
        let is_free = handshake.backend == 0 || silence > settings.half_open_idle_ns;
        let own = handshake.client.is(&bench.claim.client);
        if !is_free && own {
            self.place = place | OWN;
            return true;
        }
        if !is_free && handshake.leaves.is(&bench.claim.leaves) {
            self.place = TAKEN;
            return true;
        }
        let waited = if is_free { u64::MAX } else { silence };
        // The client's own abandoned one is the best, so that it never has two.
        if waited > self.longest || (is_free && own) {
            self.longest = waited;
            self.place = place;
        }
        false
    }
}

/// Whether packets still belong to a handshake: an abandoned one's port may be another's by now.
#[inline(always)]
fn is_under_way(handshake: &Handshake, settings: &Settings, now: u64) -> bool {
    handshake.is_whole() && now.saturating_sub(handshake.last_seen_ns) <= settings.half_open_idle_ns
}

#[inline(always)]
fn quotient(number: u32, divisor: u32) -> u32 {
    number.checked_div(divisor).unwrap_or(0)
}

#[inline(always)]
fn remainder(number: u32, divisor: u32) -> u32 {
    number.checked_rem(divisor).unwrap_or(0)
}
