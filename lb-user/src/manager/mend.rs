//! What goes wrong while a manager runs, and how it mends it: said once, tried again until it works.

use std::time::Instant;

use tracing::{debug, error, info, warn};

use super::{Happening, Manager};
use crate::{
    core::Severity,
    datapath::{Mended, Routes},
    status::Interface,
};

impl Manager {
    /// Takes over the ways to the workers as the kernel has them now, and looks after all else that
    /// may have broken meanwhile.
    pub(super) fn look_around(&mut self, routes: &Routes) {
        if let Err(error) = self.datapath.take_routes(routes) {
            self.map_write_failed(&error);
        }
        self.look_at_links();
        self.mend_interfaces();
        self.mend_pins();
        self.repeat_writes();
    }

    /// Tells the core how the workers are reached.
    pub(super) fn look_at_links(&mut self) {
        let links = self.datapath.links();
        self.core.handle_links(&links, Instant::now());
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

    /// Attaches anew to interfaces that were gone, and says which are.
    fn mend_interfaces(&mut self) {
        for mended in self.datapath.mend_attachments() {
            match mended {
                Mended::Gone(interface) => {
                    let message = format!(
                        "interface {interface} is gone: its clients and workers are not reached \
                         until it is back"
                    );
                    warn!("{message}");
                    let event = Happening::InterfaceGone {
                        interface: &interface,
                    };
                    self.log.publish(Severity::Warn, message, &event);
                }
                Mended::Back(interface) => {
                    if let Err(error) = self.pins.hold_links() {
                        warn!("{error:#}");
                    }
                    let message = format!("interface {interface} is back, and attached to again");
                    info!("{message}");
                    let event = Happening::InterfaceBack {
                        interface: &interface,
                    };
                    self.log.publish(Severity::Info, message, &event);
                }
                Mended::Failed(interface, error) => {
                    let message = format!(
                        "interface {interface} is back, but cannot be attached to: {error:#}; \
                         trying again every few seconds"
                    );
                    error!("{message}");
                    let event = Happening::InterfaceNotAttached {
                        interface: &interface,
                        error: &message,
                    };
                    self.log.publish(Severity::Warn, message.clone(), &event);
                }
            }
        }
        let attachments = self.datapath.attachments().iter();
        self.interfaces = attachments.map(Interface::from).collect();
    }
}
