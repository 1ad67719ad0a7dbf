//! Repairs what breaks while a manager runs: failed map writes, detached programs, removed pins. Each fault is
//! reported once and repaired as soon as that is possible.

use std::time::Instant;

use tracing::{debug, error, warn};

use super::{Happening, Manager};
use crate::{
    datapath::{AttachmentChange, Pins, Routes},
    status::Interface,
};
use lb_core::Severity;

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

    pub fn writes_fail(&self) -> bool {
        self.writes_fail
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

    /// Tells the core how the workers are reached.
    pub(super) fn update_links(&mut self) {
        let links = self.datapath.links();
        self.core.handle_routes(&links, Instant::now());
    }

    /// Tells the core whether the answers of workers in mode `routed` pass this machine.
    pub(super) fn check_return_paths(&mut self) {
        match self.datapath.answers() {
            Ok(answers) => self.core.handle_reply_counters(&answers, Instant::now()),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Records that a map could not be written. Everything is written again later.
    pub(super) fn map_write_failed(&mut self, error: &anyhow::Error) {
        self.emitter.metrics.map_write_failed();
        let error = format!("{error:#}");
        self.recovery.write_failed_again = true;
        if self.recovery.writes_fail {
            debug!("{error}");
            return;
        }
        self.recovery.writes_fail = true;
        let message = format!("{error}; the manager writes everything again every few seconds");
        let event = Happening::MapWriteFailed { error: &error };
        self.emitter.emit(Severity::Warn, message, &event);
    }

    /// After a failed write, writes everything that the maps should hold.
    fn repeat_writes(&mut self) {
        if !self.recovery.writes_fail {
            return;
        }
        self.recovery.write_failed_again = false;
        let settings = self.configuration.settings.clone();
        let links = self.datapath.links();
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
            let message = "the maps can be written again, and hold what they should".to_owned();
            self.emitter
                .emit(Severity::Info, message, &Happening::MapsWritten);
        }
    }

    /// Checks whether programs and pins are in place, and restores them.
    pub(super) fn reconcile_attachments(&mut self) {
        self.restore_pins();
        let changes = self.datapath.reconcile_attachments();
        if !changes.is_empty()
            && let Err(error) = self.recovery.pins.hold_links()
        {
            warn!("{error:#}");
        }
        for change in &changes {
            self.report_attachment(change);
        }
        let attachments = self.datapath.attachments();
        self.interfaces = attachments.map(Interface::from).collect();
        self.update_links();
    }

    fn restore_pins(&mut self) {
        match self.recovery.pins.restore() {
            Ok(pins) if pins.is_empty() => self.recovery.pins_fail = false,
            Ok(pins) => {
                let message = format!(
                    "somebody removed the pins of {} from {}: they are back; `memlb unload` removes \
                     all that is memlb's",
                    pins.join(", "),
                    self.recovery.pins.directory().display()
                );
                let event = Happening::PinsRestored { pins: &pins };
                self.emitter.emit(Severity::Warn, message, &event);
            }
            Err(error) => {
                if !self.recovery.pins_fail {
                    error!("{error:#}; trying again every few seconds");
                }
                self.recovery.pins_fail = true;
            }
        }
    }

    fn report_attachment(&mut self, change: &AttachmentChange) {
        let (severity, message, event) = match change {
            AttachmentChange::Gone(interface) => (
                Severity::Warn,
                format!(
                    "interface {interface} is gone: its clients and workers are not reached until it \
                     is back"
                ),
                Happening::InterfaceGone { interface },
            ),
            AttachmentChange::Back(interface) => (
                Severity::Info,
                format!("interface {interface} is back, and attached to again"),
                Happening::InterfaceBack { interface },
            ),
            AttachmentChange::Renamed { was, interface } => (
                Severity::Warn,
                format!(
                    "interface {was} is now called {interface}: its programs stay; name it so in \
                     manager.interfaces before the manager is restarted"
                ),
                Happening::InterfaceRenamed { interface, was },
            ),
            AttachmentChange::Replaced { interface, former } => (
                Severity::Warn,
                format!(
                    "another interface is now called {interface}: attaching to it, too; the former one \
                     is {former}"
                ),
                Happening::InterfaceReplaced { interface, former },
            ),
            AttachmentChange::Restored {
                interface,
                programs,
            } => {
                self.emitter.metrics.programs_restored(interface);
                (
                    Severity::Warn,
                    format!(
                        "somebody took {} off interface {interface}: attached again; find out which \
                         program does that (tc, bpftool, another agent)",
                        programs.join(", ")
                    ),
                    Happening::ProgramsRestored {
                        interface,
                        programs,
                    },
                )
            }
            AttachmentChange::Failed(interface, error) => {
                let message = format!(
                    "interface {interface} cannot be attached to: {error:#}; trying again every second"
                );
                let event = Happening::InterfaceNotAttached {
                    interface,
                    error: &message,
                };
                return self.emitter.emit(Severity::Warn, message.clone(), &event);
            }
        };
        self.emitter.emit(severity, message, &event);
    }
}
