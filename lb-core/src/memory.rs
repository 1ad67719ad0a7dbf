//! Amounts of memory.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A worker's memory by its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `MemAvailable`, or less under a cgroup limit.
    pub available_bytes: u64,
    /// `None` in the 2018 format.
    pub total_bytes: Option<u64>,
}

/// The share of the last ten seconds in which some task waited for memory, in hundredths of a percent:
/// `some avg10` of the kernel's pressure stall information, 0 to [`Pressure::MOST`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Pressure(pub u16);

impl Pressure {
    /// All of the time.
    pub const MOST: Self = Self(10_000);

    /// Converts a percentage; more than 100 counts as 100.
    pub fn percent(percent: u32) -> Self {
        let percent = u16::try_from(percent.min(100)).unwrap_or(100);
        Self(percent * 100)
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}%", self.0 / 100, self.0 % 100)
    }
}

/// Displays a share, given in hundredths of a percent, so that no share but 0 is shown as 0: `0%`, `0.07%`, `33.3%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u16);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(share) = *self;
        match share {
            0 | 10_000 => write!(f, "{}%", share / 100),
            1..100 => write!(f, "0.{share:02}%"),
            _ => write!(f, "{}.{}%", share / 100, share / 10 % 10),
        }
    }
}

/// Displays bytes in the largest binary unit in which they are at least 1: `394.0 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (1..UNITS.len())
            .rev()
            .find(|unit| self.0 >> (10 * unit) != 0)
            .unwrap_or(0);
        if unit == 0 {
            return write!(f, "{} B", self.0);
        }
        // Tenths are taken in integers and rounded to nearest; u128 cannot overflow here.
        let tenths = (u128::from(self.0) * 10 + (1 << (10 * unit - 1))) >> (10 * unit);
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_has_the_format_of_the_kernel() {
        assert_eq!(Pressure(7).to_string(), "0.07%");
        assert_eq!(Pressure::MOST.to_string(), "100.00%");
    }

    #[test]
    fn small_share_is_not_shown_as_0() {
        let shown = [(0, "0%"), (7, "0.07%"), (100, "1.0%"), (3_333, "33.3%")];
        for (share, text) in shown.into_iter().chain([(10_000, "100%")]) {
            assert_eq!(Share(share).to_string(), text);
        }
    }

    #[test]
    fn bytes_have_the_largest_fitting_unit() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (394 << 20, "394.0 MiB"),
            (700 << 20, "700.0 MiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }
}
