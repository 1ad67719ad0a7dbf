//! How much memory one more connection takes on a worker, learnt from its reports.
//!
//! Between two reports the worker's free memory has changed by so much and its open connections by so
//! many: the slope of the one over the other, by least squares through the origin, with old pairs
//! fading. Where memory has nothing to do with connections, the slope is next to nothing.

/// Old pairs lose one part of so many with each new one.
const DECAY: i128 = 16;

/// As many squared connections must have been seen come or go before a slope means anything.
const MIN_SQUARES: i128 = 16;

/// Nobody's connection takes more; more is something else's doing.
const MAX_BYTES: i128 = 256 << 20;

/// What is known of one worker's connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryPerConnection {
    /// Open connections as last counted.
    open: u64,
    /// Open connections and free memory at the last report that a count followed.
    at_report: Option<(u64, u64)>,
    /// Whether a report came since the last count.
    reported: bool,
    products: i128,
    squares: i128,
}

impl MemoryPerConnection {
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
            self.products += opened * taken - self.products / DECAY;
            self.squares += opened * opened - self.squares / DECAY;
        }
    }

    /// Returns what one connection takes, as far as is known.
    pub fn bytes_per_connection(&self) -> u64 {
        if self.squares < MIN_SQUARES {
            return 0;
        }
        let slope = (self.products / self.squares).clamp(0, MAX_BYTES);
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

    fn learnt(per_connection: u64, opens: &[u64]) -> MemoryPerConnection {
        let mut memory_per_connection = MemoryPerConnection::default();
        for &open in opens {
            memory_per_connection.report();
            memory_per_connection.count(open, Some(1_000 * MIB - open * per_connection));
        }
        memory_per_connection
    }

    #[test]
    fn finds_what_a_connection_takes() {
        let memory_per_connection = learnt(2 * MIB, &[10, 30, 20, 50, 50, 5]);
        let off = memory_per_connection
            .bytes_per_connection()
            .abs_diff(2 * MIB);
        assert!(off < 2 * MIB / 100, "{off}");
        assert_eq!(memory_per_connection.drift_bytes(), 0);
    }

    #[test]
    fn expects_what_was_opened_and_closed_since_the_report() {
        let mut memory_per_connection = learnt(2 * MIB, &[10, 30, 20]);
        memory_per_connection.count(27, Some(1));
        assert_eq!(
            memory_per_connection.drift_bytes() / (MIB as i64 - 4_096),
            14
        );
        memory_per_connection.count(17, Some(1));
        assert_eq!(
            memory_per_connection.drift_bytes() / (MIB as i64 - 4_096),
            -6
        );
    }

    #[test]
    fn knows_nothing_while_nothing_moves() {
        assert_eq!(learnt(MIB, &[0, 1, 0, 1]).bytes_per_connection(), 0);
        assert_eq!(MemoryPerConnection::default().drift_bytes(), 0);
    }

    #[test]
    fn learns_no_nonsense() {
        // Memory that grows as connections come, and memory that vanishes for other reasons.
        let mut memory_per_connection = MemoryPerConnection::default();
        for (open, available) in [(0, 1), (100, u64::MAX), (0, 1), (100, u64::MAX)] {
            memory_per_connection.report();
            memory_per_connection.count(open, Some(available));
        }
        assert_eq!(memory_per_connection.bytes_per_connection(), 0);
        memory_per_connection.report();
        memory_per_connection.count(u64::MAX, Some(0));
        assert!(memory_per_connection.bytes_per_connection() <= MAX_BYTES as u64);
        memory_per_connection.count(0, Some(0));
        assert!(memory_per_connection.drift_bytes() <= 0);
    }
}
