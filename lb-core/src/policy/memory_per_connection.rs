//! Estimates the memory that one connection uses on a worker from its reports: the slope of the change of available
//! memory over the change of open connections between two reports, by least squares through the origin. Old pairs
//! decay. If memory does not depend on connections, the slope is nearly 0.

/// With each new pair, the sums lose one part of this many.
const DECAY: i128 = 16;

/// The least sum of squared changes of connections from which a slope is computed.
const MIN_SQUARES: i128 = 16;

/// The largest estimate. No connection uses more.
const MAX_BYTES: i128 = 256 << 20;

/// The estimate for one worker.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryPerConnection {
    /// Open connections at the last count.
    open: u64,
    /// Open connections and available memory at the last report that a count followed.
    at_report: Option<(u64, u64)>,
    /// Whether a report was received since the last count.
    reported: bool,
    products: i128,
    squares: i128,
}

impl MemoryPerConnection {
    /// Records a report: the next count belongs to it.
    pub fn record_report(&mut self) {
        self.reported = true;
    }

    /// Adds a count of open connections, with the available memory of the last report.
    pub fn count(&mut self, open: u64, available_bytes: Option<u64>) {
        // No flow table holds more, and squares cannot overflow.
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

    /// Returns the memory of one connection; 0 while it is unknown.
    pub fn bytes_per_connection(&self) -> u64 {
        if self.squares < MIN_SQUARES {
            return 0;
        }
        let slope = (self.products / self.squares).clamp(0, MAX_BYTES);
        u64::try_from(slope).unwrap_or(0)
    }

    /// Returns the memory that connections opened since the last report will use; negative if more were closed.
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
            memory_per_connection.record_report();
            memory_per_connection.count(open, Some(1_000 * MIB - open * per_connection));
        }
        memory_per_connection
    }

    #[test]
    fn finds_the_memory_of_a_connection() {
        let memory_per_connection = learnt(2 * MIB, &[10, 30, 20, 50, 50, 5]);
        let off = memory_per_connection
            .bytes_per_connection()
            .abs_diff(2 * MIB);
        assert!(off < 2 * MIB / 100, "{off}");
        assert_eq!(memory_per_connection.drift_bytes(), 0);
    }

    #[test]
    fn expects_the_connections_since_the_report() {
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
    fn is_unknown_while_nothing_changes() {
        assert_eq!(learnt(MIB, &[0, 1, 0, 1]).bytes_per_connection(), 0);
        assert_eq!(MemoryPerConnection::default().drift_bytes(), 0);
    }

    #[test]
    fn stays_within_bounds() {
        // Memory that grows as connections come, and memory that vanishes for other reasons.
        let mut memory_per_connection = MemoryPerConnection::default();
        for (open, available) in [(0, 1), (100, u64::MAX), (0, 1), (100, u64::MAX)] {
            memory_per_connection.record_report();
            memory_per_connection.count(open, Some(available));
        }
        assert_eq!(memory_per_connection.bytes_per_connection(), 0);
        memory_per_connection.record_report();
        memory_per_connection.count(u64::MAX, Some(0));
        assert!(memory_per_connection.bytes_per_connection() <= MAX_BYTES as u64);
        memory_per_connection.count(0, Some(0));
        assert!(memory_per_connection.drift_bytes() <= 0);
    }
}
