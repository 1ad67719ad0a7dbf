//! What an operator tells the manager's task to do.

use std::time::Instant;

use tokio::sync::oneshot;
use tracing::debug;

use super::Manager;
use crate::core::{Obeyed, Order, OrderError};

/// Done in the manager's task in one short step; whatever takes time happens before or after, in
/// the asker's own task.
#[derive(Debug)]
pub enum Instruction {
    Order(Order, oneshot::Sender<Result<Obedience, OrderError>>),
}

/// An order carried out, but not yet kept for the next manager.
#[derive(Debug)]
pub struct Obedience {
    pub obeyed: Obeyed,
    /// It is kept once this version of the orders is written, see [`super::Written`].
    pub version: u64,
}

impl Manager {
    pub(super) fn follow(&mut self, instruction: Instruction) {
        let heard = match instruction {
            Instruction::Order(order, reply) => reply.send(self.obey(&order)).is_ok(),
        };
        if !heard {
            debug!("who gave an instruction has gone");
        }
    }

    fn obey(&mut self, order: &Order) -> Result<Obedience, OrderError> {
        let obeyed = self.core.handle_order(order, Instant::now())?;
        let version = self.orders_file.keep(self.core.orders().clone());
        Ok(Obedience { obeyed, version })
    }
}
