//! Texts about a peer for views.

use std::time::Duration;

use lb_core::Bytes;

use crate::peer::{PeerState, PeerStatus};

/// A lag with which a take-over would lose many connections.
const HIGH_LAG: Duration = Duration::from_secs(1);

/// Summarizes the state and the lag in one line.
pub fn summary(peer: &PeerStatus) -> String {
    let since = humantime::format_duration(Duration::from_secs(peer.state_since_ms / 1000));
    let state = format!("{} for {since}", peer.state.name());
    if peer.state != PeerState::Connected {
        return state;
    }
    let lags = [
        ("lag", peer.lag_us),
        ("p50", peer.lag_p50_us),
        ("p99", peer.lag_p99_us),
    ];
    let lags = lags
        .iter()
        .filter_map(|(name, us)| Some(format!("{name} {}", lag((*us)?))));
    let lags: Vec<String> = lags.collect();
    let figures = match lags.is_empty() {
        true => String::new(),
        false => format!(", {}", lags.join(", ")),
    };
    format!("{state}{figures}; memlb {}", peer.version)
}

/// Summarizes the traffic with the peer in one line.
pub fn traffic(peer: &PeerStatus) -> String {
    let mut parts = vec![
        format!(
            "sent {} records ({})",
            peer.records_sent,
            Bytes(peer.bytes_sent)
        ),
        format!(
            "received {} ({})",
            peer.records_received,
            Bytes(peer.bytes_received)
        ),
    ];
    for (count, what) in [
        (peer.queue_records, "queued"),
        (peer.lost_records, "lost and sent again"),
        (peer.resyncs, "whole transfers"),
        (peer.relayed_packets, "packets relayed"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let refused = peer.refused_frames.iter().filter(|it| *it.1 > 0);
    parts.extend(refused.map(|(reason, count)| format!("{count} frames refused ({reason})")));
    parts.join(", ")
}

/// Says that this manager lacks connections of a connected peer.
pub fn not_received(peer: &PeerStatus) -> Option<String> {
    let is_incomplete = peer.state == PeerState::Connected && !peer.received_complete;
    is_incomplete.then(|| format!("not all connections of {} are known here yet", peer.name))
}

/// Describes the peer's problems, one sentence each.
pub fn problems(peer: &PeerStatus) -> Vec<String> {
    let PeerStatus { name, .. } = peer;
    let mut problems = Vec::new();
    if peer.state != PeerState::Connected {
        let reason = peer.reason.as_deref().unwrap_or("it has not answered yet");
        problems.push(format!("{name} is not connected: {reason}"));
    } else {
        if !peer.complete {
            problems.push(format!(
                "{name} does not know all connections of this manager yet"
            ));
        }
        problems.extend(not_received(peer));
        if let Some(us) = peer
            .lag_us
            .filter(|us| Duration::from_micros(*us) >= HIGH_LAG)
        {
            problems.push(format!(
                "{name} acknowledges late: its lag is {}, and the connections of that time would be lost if this machine failed now",
                lag(us)
            ));
        }
    }
    if peer.configuration_matches == Some(false) {
        problems.push(format!(
            "the configuration of {name} differs: compare what memlb check --shared prints on both"
        ));
    }
    problems
}

/// Formats a lag for display.
pub fn lag(us: u64) -> String {
    match us {
        0 => "0 ms".to_owned(),
        us if us < 10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        us if us < 10_000_000 => format!("{} ms", us / 1000),
        us => format!("{} s", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_what_is_missing_and_nothing_of_a_complete_peer() {
        let mut peer = PeerStatus {
            name: "manager2".to_owned(),
            state: PeerState::Connected,
            state_since_ms: 65_000,
            complete: true,
            received_complete: true,
            lag_us: Some(420),
            lag_p99_us: Some(12_345),
            records_sent: 3,
            configuration_matches: Some(true),
            version: "0.1.0".to_owned(),
            ..PeerStatus::default()
        };
        assert_eq!(
            summary(&peer),
            "connected for 1m 5s, lag 0.4 ms, p99 12 ms; memlb 0.1.0"
        );
        assert_eq!(problems(&peer), [""; 0]);
        peer.lag_us = Some(2_500_000);
        peer.received_complete = false;
        peer.configuration_matches = Some(false);
        peer.refused_frames.insert("bad_tag".to_owned(), 2);
        assert!(traffic(&peer).ends_with("2 frames refused (bad_tag)"));
        let problems_now = problems(&peer);
        assert_eq!(problems_now.len(), 3, "{problems_now:?}");
        assert!(problems_now[1].contains("its lag is 2500 ms"));
        peer.state = PeerState::Refused;
        peer.reason = Some("it has another key".to_owned());
        assert_eq!(
            problems(&peer)[0],
            "manager2 is not connected: it has another key"
        );
        assert_eq!(summary(&peer), "refused for 1m 5s");
    }
}
