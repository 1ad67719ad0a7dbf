//! Passes received heartbeats to the core.

use std::time::Duration;

use tracing::warn;

use super::Manager;
use crate::{
    heartbeat_receiver::{Received, ReceivedHeartbeat, ReceivedPing},
    history::now_ms,
};
use lb_core::{AdminAction, AdminCommand, Audited, HeartbeatOutcome, milliseconds};

/// The most datagrams of one round, so that they do not delay deadlines and requests.
const BATCH: usize = 256;

/// The author of a pause that an agent announced. The author of an operator's command is the user.
const AGENT: &str = "its agent";

/// An agent repeats the announcement of a pause for two seconds at most.
const REPETITION: Duration = Duration::from_secs(5);

impl Manager {
    pub(super) fn receive_heartbeats(&mut self) {
        for _ in 0..BATCH {
            match self.receiver.receive() {
                Received::Heartbeat(heartbeat) => self.handle_heartbeat(*heartbeat),
                Received::Ping(ping) => self.handle_ping(&ping),
                Received::ConnectionReply(reply) => self.handle_connection_reply(&reply),
                Received::Handled => {}
                Received::Nothing => break,
            }
        }
        self.receiver.count_overflow();
        self.emit_received();
    }

    pub(super) fn emit_received(&mut self) {
        while let Some(event) = self.receiver.poll_event() {
            self.emitter.emit(&event);
        }
    }

    /// Passes a heartbeat to the core, or to the join requests if no service has its worker.
    pub(super) fn handle_heartbeat(&mut self, heartbeat: ReceivedHeartbeat) {
        let report = &heartbeat.report;
        let from = heartbeat.address();
        let counts = self.membership.accepts(&report.worker, from, report.signed);
        let outcome = match counts {
            true => self.core.handle_heartbeat(report, heartbeat.at),
            false => HeartbeatOutcome::UnknownWorker,
        };
        if outcome == HeartbeatOutcome::UnknownWorker {
            return self.request_join(heartbeat);
        }
        self.receiver.handle_outcome(&heartbeat, outcome);
        if outcome != HeartbeatOutcome::Accepted {
            return;
        }
        self.connection_lookup.record_agent(&heartbeat);
        if let Some(pause) = heartbeat.pause() {
            self.apply_announced_pause(&heartbeat.report.worker, pause);
        }
    }

    fn handle_ping(&mut self, ping: &ReceivedPing) {
        let is_unknown = ping.worker().is_some_and(|it| !self.core.has_worker(it));
        let is_unknown = is_unknown && !self.configuration.may_join(ping.address());
        self.receiver.reply_to_ping(ping, is_unknown);
    }

    /// Pauses a worker whose agent announces a pause. The agent repeats that in several heartbeats.
    fn apply_announced_pause(&mut self, worker: &str, pause: Duration) {
        let (for_ms, at_ms) = (milliseconds(pause), now_ms());
        let is_this = |(paused, pause): (&str, &Audited<u64>)| {
            paused == worker && is_repeated(pause, for_ms, at_ms)
        };
        if self.core.admin_overrides().pauses().any(is_this) {
            return;
        }
        let command = AdminCommand {
            worker: worker.to_owned(),
            service: None,
            action: AdminAction::Pause { for_ms },
            by: AGENT.to_owned(),
            at_ms,
            reason: None,
        };
        if let Err(error) = self.apply_admin_command(&command) {
            warn!("{worker} announces a pause: {error}");
        }
    }
}

/// Whether an announcement repeats the one that began this pause.
fn is_repeated(pause: &Audited<u64>, for_ms: u64, now_ms: u64) -> bool {
    pause.by == AGENT
        && pause.value == for_ms
        && now_ms.abs_diff(pause.at_ms) < milliseconds(REPETITION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_or_longer_pause_of_an_agent_replaces_the_former_one() {
        let pause = |by: &str| Audited {
            value: 60_000,
            by: by.to_owned(),
            at_ms: 1_000_000,
            reason: None,
        };
        let own = pause(AGENT);
        assert!(is_repeated(&own, 60_000, 1_002_000));
        assert!(!is_repeated(&own, 600_000, 1_002_000), "longer");
        assert!(!is_repeated(&own, 60_000, 1_030_000), "later");
        assert!(!is_repeated(&pause("root"), 60_000, 1_000_000));
    }
}
