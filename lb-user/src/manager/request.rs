//! Requests to the manager's task. It handles each in one short step; whatever takes time happens before or
//! after that, in the caller's task.

use std::{net::IpAddr, time::Instant};

use tokio::sync::oneshot;
use tracing::debug;

use super::{
    DenyChange, DenyOutcome, Manager, ReloadError, Reloaded, Save, SourceError, SourceReceipt,
    SourceUpdate, reload::Reload,
};
use crate::{
    datapath::Routes,
    deny::{DenyError, DenyList},
    membership::JoinError,
    status::ManagerSnapshot,
};
use lb_core::{AdminCommand, AdminError, CommandResult, Event};

/// Each request carries the sender of its reply. The reply is sent after the maps are written, so that a
/// command is in force when its caller continues.
#[derive(Debug)]
pub(crate) enum ManagerRequest {
    Snapshot(oneshot::Sender<ManagerSnapshot>),
    Admin(
        AdminCommand,
        oneshot::Sender<Result<CommandReceipt, AdminError>>,
    ),
    Deny(DenyChange, oneshot::Sender<Result<DenyOutcome, DenyError>>),
    ListDenied(oneshot::Sender<DenyList>),
    /// A prepared reload, or the reason why it cannot be done, which becomes an event.
    Reload(
        Result<Box<Reload>, ReloadError>,
        oneshot::Sender<Result<Reloaded, ReloadError>>,
    ),
    /// A source's whole list of workers, with the routes to them.
    SetWorkers(
        Box<SourceUpdate>,
        Routes,
        oneshot::Sender<Result<SourceReceipt, SourceError>>,
    ),
    /// An event of another task.
    Emit(Box<Event>, oneshot::Sender<()>),
    /// A worker that joined a peer, with its route, or without an address one that a peer has removed.
    Join(
        String,
        Option<IpAddr>,
        Routes,
        oneshot::Sender<Result<(), JoinError>>,
    ),
    /// Why a source cannot say which workers there are.
    SourceProblem(String, String, oneshot::Sender<Result<(), SourceError>>),
}

/// A command in force.
#[derive(Debug)]
pub struct CommandReceipt {
    pub result: CommandResult,
    pub saved: Save,
}

impl Manager {
    pub(super) fn handle_request(&mut self, request: ManagerRequest) {
        let is_received = match request {
            ManagerRequest::Snapshot(reply) => reply.send(self.snapshot()).is_ok(),
            ManagerRequest::Admin(command, reply) => {
                reply.send(self.apply_admin_command(&command)).is_ok()
            }
            ManagerRequest::Deny(change, reply) => reply.send(self.change_denied(change)).is_ok(),
            ManagerRequest::Emit(event, reply) => {
                self.emitter.emit(&event);
                reply.send(()).is_ok()
            }
            ManagerRequest::ListDenied(reply) => reply.send(self.denied.clone()).is_ok(),
            ManagerRequest::SetWorkers(update, routes, reply) => {
                reply.send(self.set_workers(*update, &routes)).is_ok()
            }
            ManagerRequest::Join(worker, address, routes, reply) => reply
                .send(self.join_as_told(worker, address, &routes))
                .is_ok(),
            ManagerRequest::SourceProblem(source, problem, reply) => {
                reply.send(self.source_failed(&source, problem)).is_ok()
            }
            ManagerRequest::Reload(prepared, reply) => reply.send(self.reload(prepared)).is_ok(),
        };
        if !is_received {
            debug!("the sender of a request has gone");
        }
    }

    /// Applies an operator's command and writes it to the maps.
    pub(super) fn apply_admin_command(
        &mut self,
        command: &AdminCommand,
    ) -> Result<CommandReceipt, AdminError> {
        let mut result = self.core.handle_admin_command(command, Instant::now())?;
        let overrides = self.core.admin_overrides().clone();
        let saved = self.state_files.overrides.save(overrides);
        self.apply_outputs();
        result.warnings.extend(self.recovery.warning());
        Ok(CommandReceipt { result, saved })
    }
}
