//! Random numbers, the same for a seed in every run.

use std::time::Duration;

#[derive(Debug)]
pub struct Random(fastrand::Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    pub fn word(&mut self) -> u32 {
        self.0.u32(..)
    }

    /// Returns true with this probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// Returns an exponentially distributed time.
    pub fn time(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(self.exponential())
    }

    /// Returns half of the mean, plus an exponentially distributed other half.
    pub fn amount(&mut self, mean: u64) -> u64 {
        (mean as f64 * 0.5 * (1.0 + self.exponential())) as u64
    }

    /// Returns a uniformly distributed time up to `longest`.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.0.f64())
    }

    /// With a mean of 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.0.f64()).ln()
    }
}
