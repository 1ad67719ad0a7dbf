//! Repairs faults while a manager runs: failed map writes, detached programs, removed pins. It reports each fault once
//! and repairs it as soon as possible.

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
    /// Whether maps may be incomplete because a write failed.
    writes_fail: bool,
    /// Whether a write failed since the last repetition began.
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

    /// Returns a warning for the author of a command, while maps cannot be written.
    pub fn warning(&self) -> Option<String> {
        let warning = "the maps cannot be written now: this takes effect when they can be";
        self.writes_fail.then(|| warning.to_owned())
    }
}

impl Manager {
    /// Applies the present routes to the workers, and repairs everything else.
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

    /// Passes the reply counters of workers in mode `routed` to the core.
    pub(super) fn check_return_paths(&mut self) {
        let counters = self.datapath.reply_counters();
        self.core.handle_reply_counters(&counters, Instant::now());
    }

    /// Records that a map could not be written. The manager writes everything again later.
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

    /// Writes everything again after a failed write.
    fn repeat_writes(&mut self) {
        if !self.recovery.writes_fail {
            return;
        }
        self.recovery.write_failed_again = false;
        let settings = &self.configuration.settings;
        let links = self.datapath.worker_routes();
        self.core
            .reconfigure(settings.clone(), &links, Instant::now());
        self.apply_outputs();
        let services = self.datapath.publish_services(&self.configuration.settings);
        let denied = self.datapath.set_denied(self.denied.prefixes());
        for error in services.err().into_iter().chain(denied.err()) {
            self.map_write_failed(&error);
        }
        if !self.recovery.write_failed_again {
            self.recovery.writes_fail = false;
            self.emitter.emit(&Event::MapsWritten {});
        }
    }

    /// Restores programs and pins that other programs have removed.
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
