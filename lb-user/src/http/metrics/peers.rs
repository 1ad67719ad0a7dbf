//! The metrics of peers.

use std::time::Duration;

use anyhow::Result;

use super::{Scrape, whole};
use crate::{
    peer::{PeerState, PeerStatus},
    status::Status,
};

impl Scrape {
    pub(super) fn peers(&mut self, status: &Status) -> Result<()> {
        if !status.peers.is_empty() {
            let is_handed_over = status.handed_over.is_some();
            self.add("memlb_handed_over", &[], is_handed_over.into())?;
        }
        status.peers.iter().try_for_each(|peer| self.peer(peer))
    }

    fn peer(&mut self, peer: &PeerStatus) -> Result<()> {
        let name = ("peer", peer.name.as_str());
        for state in PeerState::ALL {
            let labels = [name, ("state", state.name())];
            self.add("memlb_peer_state", &labels, (peer.state == state).into())?;
        }
        let seconds = |us| Duration::from_micros(us).as_secs_f64();
        for (family, figure) in [
            (
                "memlb_peer_configuration_matches",
                peer.configuration_matches.map(f64::from),
            ),
            ("memlb_peer_lag_seconds", peer.lag_us.map(seconds)),
            ("memlb_peer_queue_records", Some(whole(peer.queue_records))),
            ("memlb_peer_resyncs_total", Some(whole(peer.resyncs))),
            (
                "memlb_peer_lost_records_total",
                Some(whole(peer.lost_records)),
            ),
            (
                "memlb_peer_relayed_packets_total",
                Some(whole(peer.relayed_packets)),
            ),
        ] {
            if let Some(figure) = figure {
                self.add(family, &[name], figure)?;
            }
        }
        for (quantile, us) in [("0.5", peer.lag_p50_us), ("0.99", peer.lag_p99_us)] {
            if let Some(us) = us {
                let labels = [name, ("quantile", quantile)];
                self.add("memlb_peer_acknowledgement_seconds", &labels, seconds(us))?;
            }
        }
        // Records that this manager sends to the peer, and records that it receives.
        let sent = (peer.complete, peer.records_sent, peer.bytes_sent);
        let received = (
            peer.received_complete,
            peer.records_received,
            peer.bytes_received,
        );
        for (direction, (is_complete, records, bytes)) in [("sent", sent), ("received", received)] {
            let labels = [name, ("direction", direction)];
            self.add("memlb_peer_incomplete", &labels, (!is_complete).into())?;
            self.add("memlb_peer_records_total", &labels, whole(records))?;
            self.add("memlb_peer_bytes_total", &labels, whole(bytes))?;
        }
        for (reason, count) in &peer.refused_frames {
            let labels = [name, ("reason", reason.as_str())];
            self.add("memlb_peer_frames_refused_total", &labels, whole(*count))?;
        }
        for (outcome, count) in &peer.intake {
            let labels = [name, ("outcome", outcome.as_str())];
            self.add("memlb_peer_intake_total", &labels, whole(*count))?;
        }
        Ok(())
    }
}
