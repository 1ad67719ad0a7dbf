//! The classes of ETSI TR 101 329 V2.1.1 (1999-06), "Telecommunications and Internet Protocol Harmonization Over
//! Networks (TIPHON); General aspects of Quality of Service", by the limits with which studies of live migration quote
//! it. They apply to voice.

use serde::Serialize;

use super::quantities::Phase;

/// From 4, the best, to 0, which is worse than all classes.
pub type Grade = u8;

/// The highest values of the classes 4 to 1.
struct Limits([f64; 4]);

/// Delay, in milliseconds; the report means one way, and round trips are graded here.
const DELAY_MS: Limits = Limits([150.0, 300.0, 450.0, f64::INFINITY]);
/// Peak jitter, in milliseconds. The limit of the best class is 0, which no measurement reaches, so the
/// resolution of the client's clock counts as 0.
const JITTER_MS: Limits = Limits([1.0, 75.0, 125.0, 225.0]);
/// Datagrams lost, in percent.
const LOST_PERCENT: Limits = Limits([0.0, 3.0, 15.0, 25.0]);

pub const NOTE: &str = "\
classes of ETSI TR 101 329 V2.1.1 (1999-06), TIPHON, as studies quote it: 4 very good, 3 good, 2 medium, 1 poor, 0 worse
  delay           up to 150, 300, 450 ms, and more (a round trip is graded here)
  peak jitter     up to 0 (here: 1), 75, 125, 225 ms
  datagrams lost  up to 0, 3, 15, 25 %
it has no classes of throughput, downtime, CPU and memory\n";

/// The classes of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Grades {
    pub delay: Option<Grade>,
    pub jitter: Option<Grade>,
    pub loss: Option<Grade>,
}

impl Grades {
    pub fn of(phase: &Phase) -> Self {
        Self {
            delay: phase.delay_ms.map(|it| DELAY_MS.grade(it)),
            jitter: phase.peak_jitter_ms.map(|it| JITTER_MS.grade(it)),
            loss: phase.lost_percent.map(|it| LOST_PERCENT.grade(it)),
        }
    }
}

impl Limits {
    fn grade(&self, value: f64) -> Grade {
        let classes = (1..=4).rev().zip(self.0);
        let mut fitting = classes.filter(|(_, limit)| value <= *limit);
        fitting.next().map_or(0, |(grade, _)| grade)
    }
}

#[cfg(test)]
mod tests {
    use super::{DELAY_MS, JITTER_MS, LOST_PERCENT};

    #[test]
    fn grades_by_the_limits() {
        assert_eq!(
            [0.2, 151.0, 400.0, 900.0].map(|it| DELAY_MS.grade(it)),
            [4, 3, 2, 1]
        );
        assert_eq!(
            [0.3, 75.0, 80.0, 225.0, 300.0].map(|it| JITTER_MS.grade(it)),
            [4, 3, 2, 1, 0]
        );
        assert_eq!(
            [0.0, 0.1, 4.0, 25.0, 60.0].map(|it| LOST_PERCENT.grade(it)),
            [4, 3, 2, 1, 0]
        );
    }
}
