//! Requests to the manager's task. It handles each in one short step; whatever takes time happens before or
//! after that, in the caller's task.

use std::time::Instant;

use tokio::sync::oneshot;
use tracing::debug;

use super::{DenyChange, DenyOutcome, Manager, ReloadError, Reloaded, reload::Reload};
use crate::{
    deny::{DenyError, DenyList},
    status::ManagerSnapshot,
};
use lb_core::{AdminCommand, AdminError, CommandResult};

/// Each request carries the sender of its reply. The reply is sent after the maps are written, so that a
/// command is in force when its caller continues.
#[derive(Debug)]
pub(crate) enum ManagerRequest {
    Snapshot(oneshot::Sender<ManagerSnapshot>),
    Order(
        AdminCommand,
        oneshot::Sender<Result<OrderOutcome, AdminError>>,
    ),
    Deny(DenyChange, oneshot::Sender<Result<DenyOutcome, DenyError>>),
    ListDenied(oneshot::Sender<DenyList>),
    /// A prepared reload, or the reason why it cannot be done, which becomes an event.
    Reload(
        Result<Box<Reload>, ReloadError>,
        oneshot::Sender<Result<Reloaded, ReloadError>>,
    ),
}

/// An order in force.
#[derive(Debug)]
pub struct OrderOutcome {
    pub obeyed: CommandResult,
    /// The version of the state file that holds it, see [`super::FlushProgress`].
    pub version: u64,
}

impl Manager {
    pub(super) fn handle_request(&mut self, request: ManagerRequest) {
        let is_received = match request {
            ManagerRequest::Snapshot(reply) => reply.send(self.snapshot()).is_ok(),
            ManagerRequest::Order(order, reply) => reply.send(self.apply_order(&order)).is_ok(),
            ManagerRequest::Deny(change, reply) => reply.send(self.change_denied(change)).is_ok(),
            ManagerRequest::ListDenied(reply) => reply.send(self.denied.clone()).is_ok(),
            ManagerRequest::Reload(prepared, reply) => reply.send(self.reload(prepared)).is_ok(),
        };
        if !is_received {
            debug!("the sender of a request has gone");
        }
    }

    /// Applies an order and writes it to the maps.
    pub(super) fn apply_order(&mut self, order: &AdminCommand) -> Result<OrderOutcome, AdminError> {
        let mut obeyed = self.core.handle_admin_command(order, Instant::now())?;
        let version = self
            .state_files
            .orders
            .save(self.core.admin_overrides().clone());
        self.apply_outputs();
        if self.recovery.writes_fail() {
            let warning = "the maps cannot be written now: the order takes effect when they can be";
            obeyed.warnings.push(warning.to_owned());
        }
        Ok(OrderOutcome { obeyed, version })
    }
}
