//! How much memory one more connection takes on a worker, learnt from its reports.
//!
//! Between two reports the worker's free memory has changed by so much and its open connections by so
//! many: the slope of the one over the other, by least squares through the origin, with old pairs
//! fading. Where memory has nothing to do with connections, the slope is next to nothing.

/// Old pairs lose one part of so many with each new one.
const FADING: i128 = 16;

/// As many squared connections must have been seen come or go before a slope means anything.
const LEAST_SQUARES: i128 = 16;

/// Nobody's connection takes more; more is something else's doing.
const MOST_BYTES: i128 = 256 << 20;

/// What is known of one worker's connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Appetite {
    /// Open connections as last counted.
    open: u64,
    /// Open connections and free memory at the last report that a count followed.
    at_report: Option<(u64, u64)>,
    /// Whether a report came since the last count.
    reported: bool,
    products: i128,
    squares: i128,
}

impl Appetite {
    /// Takes note that a report came: the next count belongs to it.
    pub fn report(&mut self) {
        self.reported = true;
    }

    /// Takes a count of the open connections in, beside what the last report said is available.
    pub fn count(&mut self, open: u64, available_bytes: Option<u64>) {
        // More than a table of flows can hold; squares stay far from overflowing.
        let open = open.min(u32::MAX.into());
        self.open = open;
        let Some(available) = available_bytes.filter(|_| std::mem::take(&mut self.reported)) else {
            return;
        };
        if let Some((open_before, available_before)) = self.at_report.replace((open, available)) {
            let opened = i128::from(open) - i128::from(open_before);
            let taken = i128::from(available_before) - i128::from(available);
            self.products += opened * taken - self.products / FADING;
            self.squares += opened * opened - self.squares / FADING;
        }
    }

    /// Returns what one connection takes, as far as is known.
    pub fn bytes_per_connection(&self) -> u64 {
        if self.squares < LEAST_SQUARES {
            return 0;
        }
        let slope = (self.products / self.squares).clamp(0, MOST_BYTES);
        u64::try_from(slope).unwrap_or(0)
    }

    /// Returns what the connections opened since the last report will take; less than 0 if more were
    /// closed.
    pub fn drift_bytes(&self) -> i64 {
        let Some((open_then, _)) = self.at_report else {
            return 0;
        };
        let opened = i128::from(self.open) - i128::from(open_then);
        let bytes = opened * i128::from(self.bytes_per_connection());
        i64::try_from(bytes).unwrap_or(if bytes > 0 { i64::MAX } else { i64::MIN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn learnt(per_connection: u64, opens: &[u64]) -> Appetite {
        let mut appetite = Appetite::default();
        for &open in opens {
            appetite.report();
            appetite.count(open, Some(1_000 * MIB - open * per_connection));
        }
        appetite
    }

    #[test]
    fn finds_what_a_connection_takes() {
        let appetite = learnt(2 * MIB, &[10, 30, 20, 50, 50, 5]);
        let off = appetite.bytes_per_connection().abs_diff(2 * MIB);
        assert!(off < 2 * MIB / 100, "{off}");
        assert_eq!(appetite.drift_bytes(), 0);
    }

    #[test]
    fn expects_what_was_opened_and_closed_since_the_report() {
        let mut appetite = learnt(2 * MIB, &[10, 30, 20]);
        appetite.count(27, Some(1));
        assert_eq!(appetite.drift_bytes() / (MIB as i64 - 4_096), 14);
        appetite.count(17, Some(1));
        assert_eq!(appetite.drift_bytes() / (MIB as i64 - 4_096), -6);
    }

    #[test]
    fn knows_nothing_while_nothing_moves() {
        assert_eq!(learnt(MIB, &[0, 1, 0, 1]).bytes_per_connection(), 0);
        assert_eq!(Appetite::default().drift_bytes(), 0);
    }

    #[test]
    fn learns_no_nonsense() {
        // Memory that grows as connections come, and memory that vanishes for other reasons.
        let mut appetite = Appetite::default();
        for (open, available) in [(0, 1), (100, u64::MAX), (0, 1), (100, u64::MAX)] {
            appetite.report();
            appetite.count(open, Some(available));
        }
        assert_eq!(appetite.bytes_per_connection(), 0);
        appetite.report();
        appetite.count(u64::MAX, Some(0));
        assert!(appetite.bytes_per_connection() <= MOST_BYTES as u64);
        appetite.count(0, Some(0));
        assert!(appetite.drift_bytes() <= 0);
    }
}
