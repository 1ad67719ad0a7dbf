//! The sign and the colour of each state. The signs differ without colour, too.

use lb_core::Health;

use super::terminal::Paint;

pub fn sign(health: Health) -> &'static str {
    match health {
        Health::Up => "●",
        Health::Down | Health::Terminated => "✕",
        Health::Unhealthy | Health::Ineligible | Health::Unreachable | Health::Failing => "▲",
        Health::Leaving | Health::Draining => "◐",
        Health::Maintenance | Health::Paused => "■",
        Health::Unknown => "○",
    }
}

pub fn paint(health: Health) -> Paint {
    match health {
        Health::Up => Paint::Good,
        Health::Down
        | Health::Unhealthy
        | Health::Terminated
        | Health::Ineligible
        | Health::Unreachable
        | Health::Failing => Paint::Bad,
        Health::Leaving | Health::Draining | Health::Maintenance | Health::Paused => Paint::Warning,
        Health::Unknown => Paint::Dim,
    }
}
