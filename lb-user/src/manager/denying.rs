//! How the manager's task denies clients, and keeps whom for the next manager.

use lb_core::Severity;
use tracing::info;

use super::{Happening, Manager};
use crate::deny::{Denied, DenyError, Prefix};

/// What an operator changes in the list of denied clients.
#[derive(Debug)]
pub enum DenyChange {
    Add(Vec<Denied>),
    Remove { prefixes: Vec<Prefix>, by: String },
}

/// A change that is in force, but not yet kept for the next manager.
#[derive(Debug)]
pub struct DenyOutcome {
    /// What was added, or removed.
    pub changed: Vec<Denied>,
    /// What the operator may not have meant, one sentence each.
    pub warnings: Vec<String>,
    /// It is kept once this version of the list is written, see [`super::Written`].
    pub version: u64,
}

impl Manager {
    pub(super) fn change_denied(&mut self, change: DenyChange) -> Result<DenyOutcome, DenyError> {
        let mut warnings = Vec::new();
        let changed = match change {
            DenyChange::Add(new) => {
                self.denied.add(&new)?;
                self.write_denied(&new, true);
                for denied in &new {
                    let event = Happening::PrefixDenied { denied };
                    self.publish_denied(denied.to_string(), &event);
                }
                new
            }
            DenyChange::Remove { prefixes, by } => {
                let removed = self.denied.remove(&prefixes)?;
                self.write_denied(&removed, false);
                for Denied { prefix, .. } in &removed {
                    let event = Happening::PrefixAllowed { prefix, by: &by };
                    self.publish_denied(format!("{prefix} is no longer denied, by {by}"), &event);
                    let others = self.denied.overlapping(*prefix);
                    warnings.extend(others.map(|other| format!("{other} is still denied")));
                }
                removed
            }
        };
        let version = self.denied_file.keep(self.denied.clone());
        Ok(DenyOutcome {
            changed,
            warnings,
            version,
        })
    }

    fn write_denied(&mut self, changed: &[Denied], deny: bool) {
        let prefixes = changed.iter().map(|denied| denied.prefix);
        if let Err(error) = self.datapath.change_denied(prefixes, deny) {
            self.map_write_failed(&error);
        }
    }

    fn publish_denied(&self, message: String, event: &Happening<'_>) {
        info!("{message}");
        self.log.publish(Severity::Info, message, event);
    }
}
