//! The two tiers of a service's backends: backups take connections only while no primary can.

use super::Service;
use crate::event::Event;
use crate::reason::Rule;

/// The backends that can serve.
#[derive(Debug)]
pub struct Tier {
    usable: Vec<bool>,
    usable_primaries: usize,
    usable_backups: usize,
    /// Whether backups take the connections, as last emitted.
    emitted: bool,
}

impl Tier {
    pub fn new(backends: usize) -> Self {
        Self {
            usable: vec![false; backends],
            usable_primaries: 0,
            usable_backups: 0,
            emitted: false,
        }
    }
}

impl Service {
    pub fn has_usable_backup(&self) -> bool {
        self.tier.usable_backups > 0
    }

    /// Whether the backups take the new connections.
    pub fn is_on_backups(&self) -> bool {
        self.tier.usable_primaries == 0 && self.has_usable_backup()
    }

    /// Whether a backend's tier takes the new connections.
    pub(super) fn is_in_tier(&self, backend: usize) -> bool {
        !self.settings.backends[backend].backup || self.tier.usable_primaries == 0
    }

    /// Whether a backend is a backup that can serve, while a primary serves.
    pub fn is_idle_backup(&self, backend: usize) -> bool {
        self.tier.usable[backend] && !self.is_in_tier(backend)
    }

    /// Sets whether a backend can serve. The backups are up while no primary can serve.
    pub(super) fn set_usable(&mut self, backend: usize, is_usable: bool) {
        if std::mem::replace(&mut self.tier.usable[backend], is_usable) == is_usable {
            return;
        }
        let count = match self.settings.backends[backend].backup {
            true => &mut self.tier.usable_backups,
            false => &mut self.tier.usable_primaries,
        };
        match is_usable {
            true => *count += 1,
            false => *count -= 1,
        }
        for other in 0..self.workers.len() {
            if self.settings.backends[other].backup && other != backend {
                let is_up = self.tier.usable[other] && self.is_in_tier(other);
                let was_up = std::mem::replace(&mut self.candidates[other].is_up, is_up);
                self.joined |= is_up && !was_up;
                self.lost |= was_up && !is_up;
            }
        }
    }

    /// Returns an event if new connections go to the other tier from now on.
    pub fn tier_event(&mut self) -> Option<Event> {
        // If nothing can serve, another event says so. At the start, workers had no time to send a heartbeat.
        let is_idle = self.tier.usable_primaries + self.tier.usable_backups == 0
            || self.reason.rule == Rule::NoHeartbeat;
        let is_on_backups = self.is_on_backups();
        if is_idle || std::mem::replace(&mut self.tier.emitted, is_on_backups) == is_on_backups {
            return None;
        }
        let service = self.settings.name.clone();
        Some(match is_on_backups {
            true => Event::BackupsServe {
                service,
                backups: self.tier.usable_backups,
            },
            false => Event::PrimariesServe {
                service,
                workers: self.tier.usable_primaries,
            },
        })
    }

    /// Takes over whether backups served before a reload.
    pub(super) fn inherit_tier(&mut self, old: &Self) {
        self.tier.emitted = old.tier.emitted;
    }
}
