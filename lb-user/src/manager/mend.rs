//! What goes wrong while a manager runs, and how it mends it: said once, tried again until it works.

use std::time::Instant;

use lb_core::Severity;
use tracing::{debug, error, info, warn};

use super::{Happening, Manager};
use crate::{
    datapath::{AttachmentChange, Routes},
    status::Interface,
};

impl Manager {
    /// Takes over the ways to the workers as the kernel has them now, and looks after all else that
    /// may have broken meanwhile.
    pub(super) fn look_around(&mut self, routes: &Routes) {
        if let Err(error) = self.datapath.take_routes(routes) {
            self.map_write_failed(&error);
        }
        self.look_at_attachments();
        self.repeat_writes();
    }

    /// Tells the core how the workers are reached.
    pub(super) fn look_at_links(&mut self) {
        let links = self.datapath.links();
        self.core.handle_routes(&links, Instant::now());
    }

    /// Tells the core whether the answers of workers in mode `routed` pass here.
    pub(super) fn look_at_answers(&mut self) {
        match self.datapath.answers() {
            Ok(answers) => self.core.handle_reply_counters(&answers, Instant::now()),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Takes note that a map could not be written: everything will be written again.
    pub(super) fn map_write_failed(&mut self, error: &anyhow::Error) {
        self.meters.map_write_failed();
        let error = format!("{error:#}");
        self.write_failed_now = true;
        if self.writes_fail {
            debug!("{error}");
            return;
        }
        self.writes_fail = true;
        error!("{error}; everything is written again every few seconds until it works");
        let failed = Happening::MapWriteFailed { error: &error };
        self.log.publish(Severity::Warn, error.clone(), &failed);
    }

    /// After a failed write, writes all that the maps should hold.
    fn repeat_writes(&mut self) {
        if !self.writes_fail {
            return;
        }
        self.write_failed_now = false;
        let settings = self.settings.clone();
        let links = self.datapath.links();
        self.core.reconfigure(settings, &links, Instant::now());
        self.carry_out();
        if let Err(error) = self.datapath.open(&self.settings) {
            self.map_write_failed(&error);
        }
        if let Err(error) = self.datapath.set_denied(self.denied.prefixes()) {
            self.map_write_failed(&error);
        }
        if !self.write_failed_now {
            self.writes_fail = false;
            let message = "the maps can be written again, and hold what they should";
            info!("{message}");
            let event = Happening::MapsWritten;
            self.log.publish(Severity::Info, message.to_owned(), &event);
        }
    }

    /// Looks whether programs and pins are where they should be, and puts right what is not.
    pub(super) fn look_at_attachments(&mut self) {
        self.mend_pins();
        let changes = self.datapath.reconcile_attachments();
        if !changes.is_empty()
            && let Err(error) = self.pins.hold_links()
        {
            warn!("{error:#}");
        }
        for change in &changes {
            self.report_attachment(change);
        }
        let attachments = self.datapath.attachments();
        self.interfaces = attachments.map(Interface::from).collect();
        self.look_at_links();
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
                self.meters.programs_restored(interface);
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
                error!("{message}");
                let event = Happening::InterfaceNotAttached {
                    interface,
                    error: &message,
                };
                self.log.publish(Severity::Warn, message.clone(), &event);
                return;
            }
        };
        match severity {
            Severity::Info => info!("{message}"),
            Severity::Warn => warn!("{message}"),
        }
        self.log.publish(severity, message, &event);
    }
}
