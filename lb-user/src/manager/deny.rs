//! Denies clients, and saves the list for the next manager.

use super::{Manager, Save};
use crate::deny::{Denied, DenyError, Prefix};
use lb_core::Event;

/// A change of the list of denied clients.
#[derive(Debug)]
pub enum DenyChange {
    Add(Vec<Denied>),
    Remove { prefixes: Vec<Prefix>, by: String },
}

/// A change in force.
#[derive(Debug)]
pub struct DenyOutcome {
    /// The prefixes that were added or removed.
    pub changed: Vec<Denied>,
    /// Effects that the operator may not have intended, one sentence each.
    pub warnings: Vec<String>,
    pub saved: Save,
}

impl Manager {
    pub(super) fn change_denied(&mut self, change: DenyChange) -> Result<DenyOutcome, DenyError> {
        let mut warnings = Vec::new();
        let changed = match change {
            DenyChange::Add(new) => {
                self.denied.add(&new)?;
                self.write_denied(&new, true);
                for Denied {
                    prefix,
                    by,
                    at_ms,
                    reason,
                } in &new
                {
                    self.emitter.emit(&Event::PrefixDenied {
                        prefix: prefix.to_string(),
                        by: by.clone(),
                        at_ms: *at_ms,
                        reason: reason.clone(),
                    });
                }
                new
            }
            DenyChange::Remove { prefixes, by } => {
                let removed = self.denied.remove(&prefixes)?;
                self.write_denied(&removed, false);
                for Denied { prefix, .. } in &removed {
                    self.emitter.emit(&Event::PrefixAllowed {
                        prefix: prefix.to_string(),
                        by: by.clone(),
                    });
                    let others = self.denied.overlapping(*prefix);
                    warnings.extend(others.map(|other| format!("{other} is still denied")));
                }
                removed
            }
        };
        warnings.extend(self.recovery.warning());
        Ok(DenyOutcome {
            changed,
            warnings,
            saved: self.state_files.denied.save(self.denied.clone()),
        })
    }

    fn write_denied(&mut self, changed: &[Denied], deny: bool) {
        let prefixes = changed.iter().map(|denied| denied.prefix);
        if let Err(error) = self.datapath.change_denied(prefixes, deny) {
            self.map_write_failed(&error);
        }
    }
}
