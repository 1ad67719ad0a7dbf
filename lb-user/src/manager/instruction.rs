//! What an operator tells the manager's task to do.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_core::{AdminAction, AdminCommand, AdminError, Audited, CommandResult};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{DenyChange, DenyOutcome, Manager, Reload, ReloadError};
use crate::{
    control::Reloaded,
    datapath::{Routes, Stats},
    deny::{DenyError, DenyList},
    history::now_ms,
};

/// By whom an announced pause is ordered, where an operator's order has a user.
const AGENT: &str = "its agent";

/// Done in the manager's task in one short step; whatever takes time happens before or after, in
/// the asker's own task.
#[derive(Debug)]
pub enum Instruction {
    Order(AdminCommand, oneshot::Sender<Result<Obedience, AdminError>>),
    Deny(DenyChange, oneshot::Sender<Result<DenyOutcome, DenyError>>),
    /// Asks who is denied.
    ListDenied(oneshot::Sender<DenyList>),
    /// Prepared, or refused already.
    Reload(
        Result<Box<Reload>, ReloadError>,
        oneshot::Sender<Result<Reloaded, ReloadError>>,
    ),
    /// The ways to the agents that have applied.
    Admit(BTreeSet<IpAddr>, Routes),
    /// The ways to the workers, as the kernel has them now.
    Routes(Routes),
    /// This next hop has another link address.
    NextHopMoved(IpAddr),
    /// The connections that backends have, parting ones among them, and the generation in which they
    /// were counted, see [`crate::datapath::Datapath::sweep`].
    Sweep(Stats, u64),
}

/// An order carried out, but not yet kept for the next manager.
#[derive(Debug)]
pub struct Obedience {
    pub obeyed: CommandResult,
    /// It is kept once this version of the orders is written, see [`super::Written`].
    pub version: u64,
}

impl Manager {
    pub(super) fn follow(&mut self, instruction: Instruction) {
        let heard = match instruction {
            Instruction::Order(order, reply) => reply.send(self.obey(&order)).is_ok(),
            Instruction::Deny(change, reply) => reply.send(self.change_denied(change)).is_ok(),
            Instruction::ListDenied(reply) => reply.send(self.denied.clone()).is_ok(),
            Instruction::Reload(prepared, reply) => reply.send(self.reload(prepared)).is_ok(),
            Instruction::Admit(addresses, routes) => {
                self.admit_applicants(&addresses, &routes);
                true
            }
            Instruction::Routes(routes) => {
                self.look_around(&routes);
                true
            }
            Instruction::NextHopMoved(next_hop) => {
                if let Err(error) = self.datapath.forget_link_of(next_hop) {
                    self.map_write_failed(&error);
                }
                true
            }
            Instruction::Sweep(stats, generation) => {
                if let Err(error) = self.datapath.sweep(&stats, generation) {
                    self.map_write_failed(&error);
                }
                true
            }
        };
        if !heard {
            debug!("who gave an instruction has gone");
        }
    }

    /// Pauses a worker whose agent announces that it will be silent, as it does more than once.
    pub(super) fn pause_announced(&mut self, worker: String, pause: Duration) {
        let is_this = |(paused, mark): (&str, &Audited<u64>)| paused == worker && mark.by == AGENT;
        if self.core.admin_overrides().pauses().any(is_this) {
            return;
        }
        let order = AdminCommand {
            worker,
            service: None,
            action: AdminAction::Pause {
                for_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            },
            by: AGENT.to_owned(),
            at_ms: now_ms(),
            reason: None,
        };
        if let Err(error) = self.obey(&order) {
            warn!("{} announces a pause: {error}", order.worker);
        }
    }

    fn obey(&mut self, order: &AdminCommand) -> Result<Obedience, AdminError> {
        let obeyed = self.core.handle_admin_command(order, Instant::now())?;
        let version = self.orders_file.keep(self.core.admin_overrides().clone());
        Ok(Obedience { obeyed, version })
    }
}
