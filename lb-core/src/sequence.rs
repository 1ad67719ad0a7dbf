//! Refuses duplicated, reordered and replayed heartbeats.

use std::cmp::Ordering;

use crate::report::{BootId, Sequence};

/// The boots that are remembered of one worker. An agent that crashes at every start has fewer boots while a signed
/// heartbeat stays fresh.
const REMEMBERED_BOOTS: usize = 64;

/// The result of checking a heartbeat's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Newer than all earlier heartbeats.
    Newer,
    /// The first of a new boot.
    Restarted,
    Duplicate,
    Reordered,
    /// Unsigned, and lower than before a silence: the numbers start again.
    Reset,
    /// Signed, and lower than before a silence. It may be a replay, so that only a new boot counts.
    NeedsNewBoot,
    /// From an earlier boot, while a later one sends.
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
    /// `fresh` says whether the worker's last heartbeat is at most `down_after` old. If it is older, an earlier boot
    /// may send higher numbers: of two agents with one name, the one that still sends counts. A machine restored from a
    /// snapshot sends numbers that were received before. Such heartbeats count if they are unsigned, because without
    /// signatures a replay is no easier than a forgery.
    pub fn admit(&mut self, sequence: Option<Sequence>, fresh: bool, signed: bool) -> Admission {
        let Some(sequence) = sequence else {
            return match fresh && !self.boots.is_empty() {
                true => Admission::Superseded,
                false => Admission::Newer,
            };
        };
        let mut boots = self.boots.iter();
        let Some(index) = boots.position(|it| it.boot == sequence.boot) else {
            let restarted = !self.boots.is_empty();
            self.record_boot(sequence);
            return match restarted {
                true => Admission::Restarted,
                false => Admission::Newer,
            };
        };
        let current = index + 1 == self.boots.len();
        if !current && fresh {
            return Admission::OldBoot;
        }
        let admission = match sequence.number.cmp(&self.boots[index].number) {
            Ordering::Equal => return Admission::Duplicate,
            Ordering::Less if fresh => return Admission::Reordered,
            Ordering::Less if signed => return Admission::NeedsNewBoot,
            Ordering::Less => Admission::Reset,
            Ordering::Greater => Admission::Newer,
        };
        self.boots.remove(index);
        self.record_boot(sequence);
        admission
    }

    /// Returns the latest boot.
    pub fn boot(&self) -> Option<BootId> {
        self.boots.last().map(|sequence| sequence.boot)
    }

    fn record_boot(&mut self, sequence: Sequence) {
        if self.boots.len() == REMEMBERED_BOOTS {
            self.boots.remove(0);
        }
        self.boots.push(sequence);
    }
}
