//! The order and the selection of the workers on the screen.

use lb_core::{BackendSnapshot, MANAGER, ShareReason};
use memlb::status::BackendStatus;

use super::rates::Rates;
use crate::cli::{health::paint, terminal::Paint};

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Workers that are down or cannot serve first, then those that an operator holds.
    #[default]
    Trouble,
    Name,
    Memory,
    Share,
    Open,
    New,
}

impl Order {
    const ALL: [Self; 6] = [
        Self::Trouble,
        Self::Name,
        Self::Memory,
        Self::Share,
        Self::Open,
        Self::New,
    ];

    pub fn next(self) -> Self {
        let place = Self::ALL.iter().position(|it| *it == self).unwrap_or(0);
        Self::ALL[(place + 1) % Self::ALL.len()]
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Trouble => "trouble first",
            Self::Name => "name",
            Self::Memory => "least memory",
            Self::Share => "largest share",
            Self::Open => "most connections",
            Self::New => "most new connections",
        }
    }

    /// Returns the indices of the backends that match `search`, in this order. Equal ones keep the order of the
    /// configuration.
    pub fn places(self, backends: &[BackendStatus], rates: &Rates, search: &str) -> Vec<usize> {
        let search = search.to_lowercase();
        let matches = |place: &usize| {
            let seen = &backends[*place].seen;
            let texts = [seen.name.as_str(), &seen.address, seen.state.name()];
            texts.iter().any(|it| it.to_lowercase().contains(&search))
        };
        let mut places: Vec<usize> = (0..backends.len()).filter(matches).collect();
        let key = |place: &usize| {
            let BackendStatus { seen, traffic } = &backends[*place];
            let first = match self {
                Self::Trouble => trouble(seen),
                Self::Name => 0,
                Self::Memory => seen.memory_available_bytes.unwrap_or(u64::MAX),
                Self::Share => u64::MAX - u64::from(seen.share),
                Self::Open => u64::MAX - traffic.flows,
                Self::New => {
                    let rate = rates.of(seen.backend_id.0).map_or(0.0, |it| it.connections);
                    u64::MAX - (rate * 1_000.0) as u64
                }
            };
            // The fallback is last.
            (seen.name == MANAGER, first)
        };
        places.sort_by_key(key);
        if self == Self::Name {
            places.sort_by_key(|it| (backends[*it].seen.name == MANAGER, &backends[*it].seen.name));
        }
        places
    }
}

/// The rank of a worker by its trouble; less is worse.
fn trouble(seen: &BackendSnapshot) -> u64 {
    let needs_help = |it: &ShareReason| it.kind.is_trouble();
    match paint(seen.state) {
        Paint::Bad => 0,
        _ if seen.reason.as_ref().is_some_and(needs_help) => 1,
        Paint::Warning | Paint::Dim => 2,
        _ => 3,
    }
}
