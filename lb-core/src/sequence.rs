//! Refuses duplicated, reordered and replayed heartbeats.

use crate::report::{BootId, Sequence};

/// Boots remembered of one worker: more than an agent that crashes at every start has while a signed
/// heartbeat is fresh.
const REMEMBERED_BOOTS: usize = 64;

/// The result of checking a heartbeat's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Newer than all before.
    Newer,
    /// The first of a new boot.
    Restarted,
    Duplicate,
    Reordered,
    /// Unsigned, and lower than before the silence: the numbers restart.
    Reset,
    /// Signed, and lower than before the silence: perhaps a replay, so that only a new boot counts.
    NeedsNewBoot,
    /// Of an earlier boot while a later one sends.
    OldBoot,
    /// In the 2018 format while version 1 is received.
    Superseded,
}

/// The highest sequence number of each of a worker's boots.
#[derive(Debug, Clone, Default)]
pub struct SequenceWindow {
    /// The latest boot is the last element.
    boots: Vec<Sequence>,
}

impl SequenceWindow {
    /// Checks a heartbeat and, if it is new, remembers it.
    ///
    /// `fresh` says whether the last heartbeat is within `down_after`. If not, an earlier boot may send
    /// higher numbers: of two agents with one name the survivor counts. A machine restored from a
    /// snapshot sends numbers that were received before. Unsigned ones count, because without signatures
    /// a replay is no easier than a forgery.
    pub fn admit(&mut self, sequence: Option<Sequence>, fresh: bool, signed: bool) -> Admission {
        let Some(sequence) = sequence else {
            return if fresh && !self.boots.is_empty() {
                Admission::Superseded
            } else {
                Admission::Newer
            };
        };
        let known = self
            .boots
            .iter()
            .position(|boot| boot.boot == sequence.boot);
        let Some(index) = known else {
            let restarted = !self.boots.is_empty();
            self.remember(sequence);
            return if restarted {
                Admission::Restarted
            } else {
                Admission::Newer
            };
        };
        let current = index + 1 == self.boots.len();
        if !current && fresh {
            return Admission::OldBoot;
        }
        match sequence.number.cmp(&self.boots[index].number) {
            std::cmp::Ordering::Equal => Admission::Duplicate,
            std::cmp::Ordering::Less if fresh => Admission::Reordered,
            std::cmp::Ordering::Less if signed => Admission::NeedsNewBoot,
            std::cmp::Ordering::Less => {
                self.boots.remove(index);
                self.remember(sequence);
                Admission::Reset
            }
            std::cmp::Ordering::Greater => {
                self.boots.remove(index);
                self.remember(sequence);
                Admission::Newer
            }
        }
    }

    /// Returns the latest boot.
    pub fn boot(&self) -> Option<BootId> {
        self.boots.last().map(|sequence| sequence.boot)
    }

    fn remember(&mut self, sequence: Sequence) {
        if self.boots.len() == REMEMBERED_BOOTS {
            self.boots.remove(0);
        }
        self.boots.push(sequence);
    }
}
