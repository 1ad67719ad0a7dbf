//! Repairs what breaks while a manager runs: failed map writes, detached programs, removed pins. Each fault is
//! reported once and repaired as soon as that is possible.

use std::time::Instant;

use tracing::{debug, error, warn};

use super::Manager;
use crate::{
    datapath::{Pins, Routes},
    status::InterfaceStatus,
};
use lb_core::Event;

/// The faults that are not repaired yet.
#[derive(Debug)]
pub(super) struct Recovery {
    pins: Pins,
    /// Whether removed pins cannot be restored.
    pins_fail: bool,
    /// Whether maps may lack what they should hold.
    writes_fail: bool,
    /// Whether a write failed in the repetition that is running.
    write_failed_again: bool,
}

impl Recovery {
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            pins_fail: false,
            writes_fail: false,
            write_failed_again: false,
        }
    }

    /// Returns a warning for the author of a command while maps cannot be written.
    pub fn warning(&self) -> Option<String> {
        let warning = "the maps cannot be written now: this takes effect when they can be";
        self.writes_fail.then(|| warning.to_owned())
    }
}

impl Manager {
    /// Applies the routes to the workers as the kernel has them now, and repairs everything else.
    pub(super) fn reconcile(&mut self, routes: &Routes) {
        if let Err(error) = self.datapath.apply_routes(routes) {
            self.map_write_failed(&error);
        }
        self.reconcile_attachments();
        self.repeat_writes();
    }

    /// Passes the workers' routes to the core.
    pub(super) fn update_links(&mut self) {
        let links = self.datapath.worker_routes();
        self.core.handle_routes(&links, Instant::now());
    }

    /// Passes to the core whether the answers of workers in mode `routed` pass this machine.
    pub(super) fn check_return_paths(&mut self) {
        let answers = self.datapath.reply_counters();
        self.core.handle_reply_counters(&answers, Instant::now());
    }

    /// Records that a map could not be written. Everything is written again later.
    pub(super) fn map_write_failed(&mut self, error: &anyhow::Error) {
        self.emitter.metrics.count_map_write_failure();
        let error = format!("{error:#}");
        self.recovery.write_failed_again = true;
        if self.recovery.writes_fail {
            debug!("{error}");
            return;
        }
        self.recovery.writes_fail = true;
        self.emitter.emit(&Event::MapWriteFailed { error });
    }

    /// After a failed write, writes everything that the maps should hold.
    fn repeat_writes(&mut self) {
        if !self.recovery.writes_fail {
            return;
        }
        self.recovery.write_failed_again = false;
        let settings = self.configuration.settings.clone();
        let links = self.datapath.worker_routes();
        self.core.reconfigure(settings, &links, Instant::now());
        self.apply_outputs();
        if let Err(error) = self.datapath.publish_services(&self.configuration.settings) {
            self.map_write_failed(&error);
        }
        if let Err(error) = self.datapath.set_denied(self.denied.prefixes()) {
            self.map_write_failed(&error);
        }
        if !self.recovery.write_failed_again {
            self.recovery.writes_fail = false;
            self.emitter.emit(&Event::MapsWritten {});
        }
    }

    /// Checks whether programs and pins are in place, and restores them.
    pub(super) fn reconcile_attachments(&mut self) {
        self.restore_pins();
        let changes = self.datapath.reconcile_attachments();
        if !changes.is_empty()
            && let Err(error) = self.recovery.pins.open_links()
        {
            warn!("{error:#}");
        }
        for change in &changes {
            self.emitter.emit(change);
        }
        let attachments = self.datapath.attachments();
        self.interfaces = attachments.map(InterfaceStatus::from).collect();
        self.update_links();
    }

    fn restore_pins(&mut self) {
        match self.recovery.pins.restore() {
            Ok(pins) if pins.is_empty() => self.recovery.pins_fail = false,
            Ok(pins) => {
                let directory = self.recovery.pins.directory().display().to_string();
                self.emitter.emit(&Event::PinsRestored { directory, pins });
            }
            Err(error) => {
                if !self.recovery.pins_fail {
                    error!("{error:#}; trying again every few seconds");
                }
                self.recovery.pins_fail = true;
            }
        }
    }
}
