//! Applies operators' commands.

use std::time::Instant;

use lb_core::{AdminCommand, AdminError, CommandResult};

use super::{Manager, Save};

/// A command in force.
#[derive(Debug)]
pub struct CommandReceipt {
    pub result: CommandResult,
    pub saved: Save,
}

impl Manager {
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
