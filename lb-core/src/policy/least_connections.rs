//! Policy `least_connections`: the worker with the fewest open connections for its weight.

use super::slots::one_each;
use super::{SlotKind, SpreadPolicy};

#[derive(Debug)]
pub struct LeastConnections;

impl SpreadPolicy for LeastConnections {
    fn slot_kind(&self) -> SlotKind {
        SlotKind::LeastConnections
    }

    fn assign(&mut self, current: &[usize], weights: &[u32]) -> Vec<usize> {
        one_each(current, weights)
    }
}
