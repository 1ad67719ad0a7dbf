//! Keeps duplicated, reordered and replayed heartbeats out.

use super::report::{BootId, Sequence};

/// How many earlier boots of one worker are remembered: more than an agent that crashes at every start
/// has within the time for which a signed heartbeat is fresh.
const REMEMBERED_BOOTS: usize = 64;

/// What to make of a heartbeat's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Newer than everything before it.
    Newer,
    /// The first of a boot not seen before, though another one was.
    Restarted,
    Duplicate,
    Reordered,
    /// Lower than what was heard before the silence, and unsigned: numbers begin anew.
    Reset,
    /// The same, and signed: it may be a recording, so that only a new boot counts.
    NeedsNewBoot,
    /// Of an earlier boot while a later one is being heard.
    OldBoot,
    /// Of the 2018 form while version 1 is being heard.
    Superseded,
}

/// The newest sequence number seen of each of a worker's boots.
#[derive(Debug, Clone, Default)]
pub struct SequenceWindow {
    /// The latest boot is the last element.
    boots: Vec<Sequence>,
}

impl SequenceWindow {
    /// Judges a heartbeat and, when it is new, remembers it.
    ///
    /// `fresh` tells whether the worker is being heard at present. While it is not, an earlier boot
    /// may speak again with numbers never seen: of two agents with one name the survivor counts. A
    /// machine restored from a snapshot goes on with numbers that were seen. Where nothing is `signed`
    /// they count, since a forger needs no recording.
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

    /// Returns the boot heard last.
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
