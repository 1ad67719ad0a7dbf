//! The pins of maps and links, put back should somebody remove them.

use lb_core::Severity;
use tracing::{error, warn};

use super::{Happening, Manager};

impl Manager {
    pub(super) fn mend_pins(&mut self) {
        match self.pins.put_back() {
            Ok(pins) if pins.is_empty() => self.pins_fail = false,
            Ok(pins) => {
                let message = format!(
                    "somebody removed the pins of {} from {}: they are back; `memlb unload` removes \
                     all that is memlb's",
                    pins.join(", "),
                    self.pins.directory().display()
                );
                warn!("{message}");
                let event = Happening::PinsRestored { pins: &pins };
                self.log.publish(Severity::Warn, message, &event);
            }
            Err(error) => {
                if !self.pins_fail {
                    error!("{error:#}; trying again every few seconds");
                }
                self.pins_fail = true;
            }
        }
    }
}
