//! The state files of a manager.

use anyhow::Result;
use lb_core::AdminOverrides;

use super::state_file::{StateFile, StateLock};
use crate::{
    config::Config,
    deny::DenyList,
    membership::{EjectionRecord, ExternalWorkers, LivenessRecord, Membership},
};

#[derive(Debug)]
pub(super) struct StateFiles {
    pub overrides: StateFile<AdminOverrides>,
    pub membership: StateFile<Membership>,
    pub workers: StateFile<ExternalWorkers>,
    pub denied: StateFile<DenyList>,
    pub liveness: StateFile<LivenessRecord>,
    pub ejections: StateFile<EjectionRecord>,
    _lock: Option<StateLock>,
}

impl StateFiles {
    /// Acquires the lock of the state file, and reads it and the files beside it.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read, with the remedy.
    pub fn load(
        config: &Config,
        membership: StateFile<Membership>,
        workers: StateFile<ExternalWorkers>,
    ) -> Result<Self> {
        let (state_file, socket) = (&config.manager.state_file, &config.manager.control_socket);
        let lock = StateLock::acquire(state_file)?;
        let (overrides, _) = StateFile::load(
            state_file,
            "the operator's orders",
            "repair or remove the file (it says which workers are drained), or name another with \
             --state-file",
        )?;
        let (denied, _) = StateFile::load(
            &state_file.with_file_name("denied.json"),
            "the denied clients",
            "repair or remove the file; without it, no client is denied",
        )?;
        let liveness = StateFile::load_observations(
            &socket.with_extension("liveness"),
            "the liveness records",
            "silent workers get down_after again to send a heartbeat",
        );
        let ejections = StateFile::load_observations(
            &socket.with_extension("failing"),
            "the failing workers",
            "failing workers get new connections until some fail again",
        );
        Ok(Self {
            overrides,
            membership,
            workers,
            denied,
            liveness,
            ejections,
            _lock: lock,
        })
    }
}
