//! Events of peers: the changes between two readings of their state.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_core::Event;

use super::Manager;
use crate::peer::{PeerState, PeerStatus, Peers};

/// The least time between two events about refused frames of a peer for one reason.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(10);

/// The peers, and their state at the last reading.
#[derive(Debug)]
pub(super) struct PeerEvents {
    peers: Peers,
    seen: BTreeMap<String, PeerStatus>,
    refusals: BTreeMap<(String, String), RefusedFrames>,
}

/// The last event about frames of a peer that were refused for one reason.
#[derive(Debug)]
struct RefusedFrames {
    /// The peer's counter at that time.
    reported: u64,
    at: Instant,
}

impl PeerEvents {
    pub fn new(peers: Peers) -> Self {
        Self {
            peers,
            seen: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Reads the peers' state, and returns the events of its changes.
    fn poll(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for peer in self.peers.statuses() {
            let first = PeerStatus {
                state_since_ms: u64::MAX,
                ..PeerStatus::default()
            };
            let before = self.seen.get(&peer.name).unwrap_or(&first);
            events.extend(changes(before, &peer));
            events.extend(self.refused_frames(&peer, now));
            self.seen.insert(peer.name.clone(), peer);
        }
        events
    }

    fn refused_frames(&mut self, peer: &PeerStatus, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for (reason, count) in &peer.refused_frames {
            let key = (peer.name.clone(), reason.clone());
            // After a change of the peers, the counters begin again.
            let known = self.refusals.get(&key);
            let known = known.filter(|it| it.reported <= *count);
            let reported = known.map_or(0, |it| it.reported);
            let is_due = |it: &RefusedFrames| now.duration_since(it.at) >= REFUSALS_INTERVAL;
            if *count <= reported || !self.refusals.get(&key).is_none_or(is_due) {
                continue;
            }
            self.refusals.insert(
                key,
                RefusedFrames {
                    reported: *count,
                    at: now,
                },
            );
            events.push(Event::PeerFramesRefused {
                peer: peer.name.clone(),
                reason: reason.clone(),
                frames: count - reported,
            });
        }
        events
    }
}

/// Returns the events between two readings of a peer.
fn changes(before: &PeerStatus, now: &PeerStatus) -> Vec<Event> {
    let peer = now.name.clone();
    let reason = now.reason.clone().unwrap_or_default();
    let mut events = Vec::new();
    let was_connected = before.state == PeerState::Connected;
    let is_connected = now.state == PeerState::Connected;
    // The session may have been replaced between the two.
    let is_new = is_connected && (!was_connected || now.state_since_ms < before.state_since_ms);
    if was_connected && (!is_connected || is_new) {
        let reason = match is_connected {
            true => "the session was replaced by another one".to_owned(),
            false => reason.clone(),
        };
        events.push(Event::PeerLost {
            peer: peer.clone(),
            reason,
        });
    }
    if now.state == PeerState::Refused
        && (before.state != PeerState::Refused || before.reason != now.reason)
    {
        events.push(Event::PeerRefused {
            peer: peer.clone(),
            reason,
        });
    }
    if is_new {
        events.push(Event::PeerConnected {
            peer: peer.clone(),
            address: now.address.parse::<SocketAddr>().ok(),
            version: now.version.clone(),
            protocol: now.protocol.unwrap_or_default(),
        });
    }
    if is_connected {
        events.extend(completeness(before, now, is_new));
    }
    let matched = before.configuration_matches;
    match now.configuration_matches {
        Some(false) if matched != Some(false) => {
            events.push(Event::PeerConfigurationDiffers { peer });
        }
        Some(true) if matched == Some(false) => {
            events.push(Event::PeerConfigurationMatches { peer });
        }
        _ => {}
    }
    events
}

/// Returns the events about whether the two managers know all of each other's connections.
fn completeness(before: &PeerStatus, now: &PeerStatus, is_new: bool) -> Vec<Event> {
    let peer = || now.name.clone();
    let lost_records = now.lost_records.saturating_sub(before.lost_records);
    let was = |complete: bool| complete && !is_new;
    let mut events = Vec::new();
    if !is_new && ((before.complete && !now.complete) || lost_records > 0) {
        events.push(Event::PeerIncomplete {
            peer: peer(),
            lost_records,
        });
    }
    if now.complete && (!was(before.complete) || lost_records > 0) {
        events.push(Event::PeerComplete { peer: peer() });
    }
    if now.received_complete && !was(before.received_complete) {
        events.push(Event::PeerConnectionsReceived { peer: peer() });
    }
    events
}

impl Manager {
    /// Emits what has changed with the peers.
    pub(super) fn report_peers(&mut self) {
        for event in self.peer_events.poll(Instant::now()) {
            self.emitter.emit(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(state: PeerState, since: u64) -> PeerStatus {
        PeerStatus {
            name: "manager2".to_owned(),
            address: "10.0.9.2:9997".to_owned(),
            state,
            state_since_ms: since,
            ..PeerStatus::default()
        }
    }

    fn texts(before: &PeerStatus, now: &PeerStatus) -> Vec<String> {
        let events = changes(before, now).into_iter();
        let names = events.map(|it| serde_json::to_value(it).unwrap()["event"].clone());
        names.map(|it| it.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn reports_each_change_once() {
        let connecting = peer(PeerState::Connecting, 100);
        let connected = PeerStatus {
            complete: true,
            version: "0.1.0".to_owned(),
            configuration_matches: Some(false),
            ..peer(PeerState::Connected, 5)
        };
        assert_eq!(texts(&connecting, &connecting), [""; 0]);
        assert_eq!(
            texts(&connecting, &connected),
            [
                "peer_connected",
                "peer_complete",
                "peer_configuration_differs"
            ]
        );
        let later = PeerStatus {
            state_since_ms: 105,
            received_complete: true,
            configuration_matches: Some(true),
            ..connected.clone()
        };
        assert_eq!(
            texts(&connected, &later),
            ["peer_connections_received", "peer_configuration_matches"]
        );
        let overrun = PeerStatus {
            lost_records: 7,
            complete: false,
            ..later.clone()
        };
        assert_eq!(texts(&later, &overrun), ["peer_incomplete"]);
        assert_eq!(
            texts(
                &overrun,
                &PeerStatus {
                    complete: true,
                    ..overrun.clone()
                }
            ),
            ["peer_complete"]
        );
        let gone = PeerStatus {
            reason: Some("timed out".to_owned()),
            ..peer(PeerState::Connecting, 0)
        };
        assert_eq!(texts(&later, &gone), ["peer_lost"]);
        assert_eq!(
            texts(&later, &connected)[..3],
            ["peer_lost", "peer_connected", "peer_complete"]
        );
        let refused = |reason: &str| PeerStatus {
            reason: Some(reason.to_owned()),
            ..peer(PeerState::Refused, 0)
        };
        assert_eq!(texts(&gone, &refused("another key")), ["peer_refused"]);
        assert_eq!(
            texts(&refused("another key"), &refused("another key")),
            [""; 0]
        );
    }

    #[test]
    fn refused_frames_are_counted_between_events() {
        let mut observer = PeerEvents::new(Peers::default());
        let begun = Instant::now();
        let with = |count| PeerStatus {
            refused_frames: [("bad_tag".to_owned(), count)].into(),
            ..peer(PeerState::Connected, 0)
        };
        let mut frames = |count, after| {
            let events = observer.refused_frames(&with(count), begun + Duration::from_secs(after));
            let frames = events.iter().map(|it| match it {
                Event::PeerFramesRefused { frames, .. } => *frames,
                other => panic!("{other}"),
            });
            frames.collect::<Vec<u64>>()
        };
        assert_eq!(frames(2, 0), [2]);
        assert_eq!(frames(5, 1), [0; 0]);
        assert_eq!(frames(9, 11), [7]);
        assert_eq!(frames(9, 30), [0; 0]);
        assert_eq!(frames(1, 31), [1], "of the replaced peer");
    }
}
