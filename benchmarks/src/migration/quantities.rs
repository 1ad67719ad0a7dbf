//! The seven quantities of a migration: throughput, delay, jitter, loss, application downtime, CPU, and memory.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::clients::{ClientLog, Datagram, HeldClient};

/// The clients' answers are counted by spans of this length.
pub const SPAN: Duration = Duration::from_millis(100);

/// When the migration began, when every client was answered again, and the time around it.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub measured_from: Instant,
    pub began: Instant,
    pub ended: Instant,
    pub measured_to: Instant,
}

/// Processor time and memory of balancer and worker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor time until now; `None` if there is no balancer, or if it runs in the kernel.
    pub balancer_time: Option<Duration>,
    pub balancer_bytes: Option<u64>,
    pub worker_time: Duration,
    /// `None` if the worker shares its process.
    pub worker_bytes: Option<u64>,
}

/// The figures of one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub seconds: f64,
    pub throughput_mib_s: f64,
    /// Mean round trip of a datagram.
    pub delay_ms: Option<f64>,
    /// Between the round trips of consecutive datagrams.
    pub mean_jitter_ms: Option<f64>,
    pub peak_jitter_ms: Option<f64>,
    pub lost_percent: Option<f64>,
    /// Of one core.
    pub balancer_cpu_percent: Option<f64>,
    pub worker_cpu_percent: f64,
    pub balancer_mib: Option<f64>,
    pub worker_mib: Option<f64>,
}

/// The effect of the migration on clients.
#[derive(Debug, Clone, Serialize)]
pub struct ClientImpact {
    pub held: usize,
    /// Those that were reset, or not answered any more.
    pub held_lost: usize,
    pub bulk_lost: bool,
    /// The longest time without an answer to a client with a connection, over all such clients. A client that loses
    /// its connection opens another one.
    pub downtime_ms: f64,
    /// The same of the least affected client.
    pub least_downtime_ms: f64,
    pub new: usize,
    pub new_failed: usize,
    pub new_longest_ms: f64,
    pub datagrams_lost: Option<usize>,
    /// Answers to all clients with a connection in spans of 100 ms, from `timeline_from_ms` on, which is relative to
    /// the beginning of the migration.
    pub answers: Vec<usize>,
    pub timeline_from_ms: f64,
}

impl ClientImpact {
    pub fn of(log: &ClientLog, times: &Times) -> Self {
        let within = |at: &Instant| times.measured_from <= *at && *at <= times.measured_to;
        let is_lost = |held: &HeldClient| {
            let is_answered = held.answers.last().is_some_and(|it| *it > times.ended);
            !is_answered || held.lost.iter().any(within)
        };
        let gaps = log.held.iter().map(|held| longest_gap(held, times));
        let gaps: Vec<f64> = gaps.map(milliseconds).collect();
        let spans = (times.measured_to - times.measured_from).as_millis() / SPAN.as_millis();
        let mut answers = vec![0; usize::try_from(spans).unwrap_or_default()];
        for at in log.held.iter().flat_map(|held| &held.answers) {
            let span = at
                .saturating_duration_since(times.measured_from)
                .as_millis()
                / SPAN.as_millis();
            if let (true, Some(count)) = (within(at), answers.get_mut(span as usize)) {
                *count += 1;
            }
        }
        let new = log.new.iter().filter(|it| within(&it.begun));
        let datagrams = log
            .datagrams
            .as_ref()
            .map(|it| part(it, times.measured_from, times.measured_to));
        Self {
            held: log.held.len(),
            held_lost: log.held.iter().filter(|held| is_lost(held)).count(),
            bulk_lost: is_lost(&log.bulk),
            downtime_ms: gaps.iter().copied().fold(0.0, f64::max),
            least_downtime_ms: gaps.iter().copied().fold(f64::INFINITY, f64::min),
            new: new.clone().count(),
            new_failed: new.clone().filter(|it| it.took.is_none()).count(),
            new_longest_ms: new
                .filter_map(|it| it.took)
                .map(milliseconds)
                .fold(0.0, f64::max),
            datagrams_lost: datagrams
                .map(|it| it.iter().filter(|it| it.round_trip.is_none()).count()),
            answers,
            timeline_from_ms: -milliseconds(times.began - times.measured_from),
        }
    }
}

impl Phase {
    /// Computes the figures between `from` and `to`; `used` is the usage at these times.
    pub fn of(
        log: &ClientLog,
        piece: usize,
        (from, to): (Instant, Instant),
        used: [Usage; 2],
    ) -> Self {
        let seconds = (to - from).as_secs_f64();
        let pieces = log
            .bulk
            .answers
            .iter()
            .filter(|it| (from..to).contains(it))
            .count();
        let datagrams = log.datagrams.as_ref().map(|it| part(it, from, to));
        let trips: Vec<f64> = datagrams
            .unwrap_or_default()
            .iter()
            .filter_map(|it| it.round_trip.map(milliseconds))
            .collect();
        let jitter: Vec<f64> = trips
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).abs())
            .collect();
        let lost = |datagrams: &[Datagram]| {
            let lost = datagrams
                .iter()
                .filter(|it| it.round_trip.is_none())
                .count();
            (!datagrams.is_empty()).then(|| 100.0 * lost as f64 / datagrams.len() as f64)
        };
        let percent = |before: Duration, after: Duration| {
            100.0 * after.saturating_sub(before).as_secs_f64() / seconds
        };
        let [before, after] = used;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Self {
            seconds,
            throughput_mib_s: (pieces * piece) as f64 / f64::from(1 << 20) / seconds,
            delay_ms: mean(&trips),
            mean_jitter_ms: mean(&jitter),
            peak_jitter_ms: jitter.iter().copied().max_by(f64::total_cmp),
            lost_percent: datagrams.and_then(lost),
            balancer_cpu_percent: before
                .balancer_time
                .zip(after.balancer_time)
                .map(|(before, after)| percent(before, after)),
            worker_cpu_percent: percent(before.worker_time, after.worker_time),
            balancer_mib: after.balancer_bytes.map(mib),
            worker_mib: after.worker_bytes.map(mib),
        }
    }
}

/// The datagrams that were sent from `from` to `to`.
fn part(datagrams: &[Datagram], from: Instant, to: Instant) -> &[Datagram] {
    let first = datagrams.partition_point(|it| it.sent < from);
    let end = datagrams.partition_point(|it| it.sent < to);
    &datagrams[first..end.max(first)]
}

fn longest_gap(held: &HeldClient, times: &Times) -> Duration {
    let answers = held.answers.iter().copied();
    let answers = answers.filter(|at| (times.measured_from..times.measured_to).contains(at));
    let begins = std::iter::once(times.measured_from).chain(answers.clone());
    let ends = answers.chain(std::iter::once(times.measured_to));
    let gaps = begins.zip(ends).map(|(begin, end)| end - begin);
    gaps.max().unwrap_or_default()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{ClientImpact, Phase, Times, Usage};
    use crate::migration::clients::{ClientLog, Datagram, HeldClient, NewConnection};

    /// A second before, a migration of a second in the middle of which nothing is answered, and a second after.
    fn migration() -> (ClientLog, Times) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let answered = |ms: &u64| !(1_200..1_700).contains(ms);
        let times = Times {
            measured_from: start,
            began: at(1_000),
            ended: at(2_000),
            measured_to: at(3_000),
        };
        let answers: Vec<_> = (10..3_000).step_by(50).filter(answered).map(at).collect();
        let datagram = |ms| Datagram {
            sent: at(ms),
            round_trip: answered(&ms).then(|| Duration::from_millis(1 + ms / 10 % 2)),
        };
        let log = ClientLog {
            held: vec![HeldClient {
                answers: answers.clone(),
                lost: vec![at(1_500)],
            }],
            new: vec![
                NewConnection {
                    begun: at(100),
                    took: Some(Duration::from_millis(2)),
                },
                NewConnection {
                    begun: at(1_300),
                    took: None,
                },
            ],
            bulk: HeldClient {
                answers,
                lost: Vec::new(),
            },
            datagrams: Some((0..3_000).step_by(10).map(datagram).collect()),
        };
        (log, times)
    }

    #[test]
    fn computes_the_effect_on_clients() {
        let (log, times) = migration();
        let noticed = ClientImpact::of(&log, &times);
        assert_eq!(
            (noticed.held, noticed.held_lost, noticed.bulk_lost),
            (1, 1, false)
        );
        assert_eq!((noticed.new, noticed.new_failed), (2, 1));
        assert_eq!(noticed.downtime_ms.round() as u64, 550);
        assert_eq!(noticed.datagrams_lost, Some(50));
        assert_eq!(noticed.answers.len(), 30);
        assert_eq!(noticed.answers[13], 0);
    }

    #[test]
    fn computes_each_phase_by_itself() {
        let (log, times) = migration();
        let used = |ms| Usage {
            balancer_time: Some(Duration::from_millis(ms)),
            ..Usage::default()
        };
        let during = Phase::of(
            &log,
            1 << 20,
            (times.began, times.ended),
            [used(0), used(250)],
        );
        assert_eq!(during.throughput_mib_s, 10.0);
        assert_eq!(during.lost_percent, Some(50.0));
        assert_eq!(during.peak_jitter_ms, Some(1.0));
        assert_eq!(during.balancer_cpu_percent, Some(25.0));
        let after = Phase::of(
            &log,
            1 << 20,
            (times.ended, times.measured_to),
            [used(0), used(0)],
        );
        assert_eq!(after.lost_percent, Some(0.0));
        assert_eq!(after.delay_ms, Some(1.5));
    }
}
