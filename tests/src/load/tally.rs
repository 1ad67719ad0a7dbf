//! What became of connections.

use std::{collections::BTreeMap, io::ErrorKind, time::Duration};

/// Counts of connections by what became of them, and how long they took.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub attempts: u64,
    /// Not attempted, since too many were open already or the time was over.
    pub skipped: u64,
    /// Established connections that ended although they should have been held.
    pub lost: u64,
    /// Connections that did not come to their end as they should, by the reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// Microseconds from the first SYN until the connection was established, of each that was.
    pub connect_us: Vec<u32>,
    /// Microseconds from the first SYN until the answer, of each that was answered.
    pub answer_us: Vec<u32>,
}

const REFUSED: &str = "refused";

impl Tally {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Returns how many were answered by RST instead of SYN and ACK.
    pub fn refused(&self) -> u64 {
        self.failures.get(REFUSED).copied().unwrap_or_default()
    }

    /// Returns the share of the attempts that took as long or longer, in percent.
    pub fn slower_percent(&self, limit: Duration) -> f64 {
        let slower = self.slower(limit) as f64;
        slower / (self.attempts.max(1) as f64) * 100.0
    }

    /// Returns how many connections took as long or longer until they were established.
    pub fn slower(&self, limit: Duration) -> usize {
        let slower = |us: &&u32| u128::from(**us) >= limit.as_micros();
        self.connect_us.iter().filter(slower).count()
    }

    /// Returns the share of the attempts that were answered within that time, in percent.
    pub fn answered_percent(&self, within: Duration) -> f64 {
        let in_time = |us: &&u32| u128::from(**us) <= within.as_micros();
        let answered = self.answer_us.iter().filter(in_time).count() as f64;
        answered / (self.attempts.max(1) as f64) * 100.0
    }

    /// Adds what another measurement of the same kind has counted.
    pub fn add(&mut self, other: Self) {
        self.attempts += other.attempts;
        self.skipped += other.skipped;
        self.lost += other.lost;
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        self.connect_us.extend(other.connect_us);
        self.answer_us.extend(other.answer_us);
    }

    pub(super) fn established(&mut self, after: Duration) {
        self.connect_us.push(microseconds(after));
    }

    pub(super) fn answered(&mut self, after: Duration) {
        self.answer_us.push(microseconds(after));
    }

    pub(super) fn fail(&mut self, kind: ErrorKind) {
        let reason = match kind {
            ErrorKind::ConnectionRefused => REFUSED,
            ErrorKind::ConnectionReset => "reset",
            ErrorKind::UnexpectedEof => "closed unanswered",
            ErrorKind::TimedOut => "timed out",
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable => "no port left at the client",
            _ => "other",
        };
        *self.failures.entry(reason).or_default() += 1;
    }
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Returns the value below which that share of `values` lies; `None` of nothing.
pub fn percentile(values: &[u32], share: f64) -> Option<u32> {
    let mut values = values.to_vec();
    let last = values.len().checked_sub(1)?;
    let position = (last as f64 * share).round() as usize;
    Some(*values.select_nth_unstable(position).1)
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Duration};

    use super::{Tally, percentile};

    #[test]
    fn finds_percentiles() {
        let values: Vec<u32> = (0..=100).rev().collect();
        assert_eq!(percentile(&values, 0.5), Some(50));
        assert_eq!(percentile(&values, 0.99), Some(99));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn adds_up_what_rounds_have_counted() {
        let mut sum = Tally::default();
        for _ in 0..2 {
            let mut round = Tally {
                attempts: 4,
                ..Tally::default()
            };
            round.fail(ErrorKind::ConnectionRefused);
            round.fail(ErrorKind::TimedOut);
            round.established(Duration::from_millis(1));
            round.established(Duration::from_millis(5));
            sum.add(round);
        }
        assert_eq!((sum.attempts, sum.failed(), sum.refused()), (8, 4, 2));
        assert_eq!(sum.slower_percent(Duration::from_millis(5)), 25.0);
    }
}
