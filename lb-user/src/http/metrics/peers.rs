//! The figures of peers.

use std::time::Duration;

use anyhow::Result;

use super::{Scrape, whole};
use crate::{
    peer::{PeerState, PeerStatus},
    status::Status,
};

const BY_PEER: [&str; 1] = ["peer"];
const BY_DIRECTION: [&str; 2] = ["peer", "direction"];
/// What this manager passes to the peer, and what it learns from it.
const DIRECTIONS: [&str; 2] = ["sent", "received"];

impl Scrape {
    pub(super) fn peers(&self, status: &Status) -> Result<()> {
        if !status.peers.is_empty() {
            let handed_over = "1 while memlb handover keeps this manager's priority low.";
            self.gauges("memlb_handed_over", handed_over, &[])?
                .with_label_values::<&str>(&[])
                .set(status.handed_over.is_some().into());
        }
        self.peer_states(&status.peers)?;
        self.peer_lags(&status.peers)?;
        self.peer_counters(&status.peers)
    }

    fn peer_states(&self, peers: &[PeerStatus]) -> Result<()> {
        let states = self.gauges(
            "memlb_peer_state",
            "1 for the state that the session with a peer is in, 0 for the others.",
            &["peer", "state"],
        )?;
        let incomplete = self.gauges(
            "memlb_peer_incomplete",
            "1 while a peer does not know all connections of this manager (sent), or this one not all of the peer's \
             (received).",
            &BY_DIRECTION,
        )?;
        let matches = self.gauges(
            "memlb_peer_configuration_matches",
            "Whether a peer's settings of services, workers, policies and failover equal this manager's.",
            &BY_PEER,
        )?;
        for peer in peers {
            let name = peer.name.as_str();
            for state in PeerState::ALL {
                let is_in = i64::from(peer.state == state);
                states.with_label_values(&[name, state.name()]).set(is_in);
            }
            let complete = [peer.complete, peer.received_complete];
            for (direction, is_complete) in DIRECTIONS.into_iter().zip(complete) {
                incomplete
                    .with_label_values(&[name, direction])
                    .set((!is_complete).into());
            }
            if let Some(equal) = peer.configuration_matches {
                matches.with_label_values(&[name]).set(equal.into());
            }
        }
        Ok(())
    }

    fn peer_lags(&self, peers: &[PeerStatus]) -> Result<()> {
        let lags = self.fractions(
            "memlb_peer_lag_seconds",
            "Age of the oldest record that a peer has not acknowledged; what began since then would be lost at this \
             machine's death.",
            &BY_PEER,
        )?;
        let quantiles = self.fractions(
            "memlb_peer_acknowledgement_seconds",
            "From reading a record to its acknowledgement, of the last frames.",
            &["peer", "quantile"],
        )?;
        let queued = self.gauges(
            "memlb_peer_queue_records",
            "Records that wait to be sent to a peer.",
            &BY_PEER,
        )?;
        let seconds = |us| Duration::from_micros(us).as_secs_f64();
        for peer in peers {
            let name = peer.name.as_str();
            if let Some(lag) = peer.lag_us {
                lags.with_label_values(&[name]).set(seconds(lag));
            }
            for (quantile, us) in [("0.5", peer.lag_p50_us), ("0.99", peer.lag_p99_us)] {
                if let Some(us) = us {
                    quantiles
                        .with_label_values(&[name, quantile])
                        .set(seconds(us));
                }
            }
            queued
                .with_label_values(&[name])
                .set(whole(peer.queue_records));
        }
        Ok(())
    }

    fn peer_counters(&self, peers: &[PeerStatus]) -> Result<()> {
        let records = self.counters(
            "memlb_peer_records_total",
            "Records of connections that were exchanged with a peer.",
            &BY_DIRECTION,
        )?;
        let bytes = self.counters(
            "memlb_peer_bytes_total",
            "Bytes that were exchanged with a peer.",
            &BY_DIRECTION,
        )?;
        let resyncs = self.counters(
            "memlb_peer_resyncs_total",
            "How often all connections were sent to a peer.",
            &BY_PEER,
        )?;
        let lost = self.counters(
            "memlb_peer_lost_records_total",
            "Records for which the queue or the kernel's ring had no room; all connections were sent again.",
            &BY_PEER,
        )?;
        let relayed = self.counters(
            "memlb_peer_relayed_packets_total",
            "Packets of connections unknown here that were passed on to a peer.",
            &BY_PEER,
        )?;
        let refused = self.counters(
            "memlb_peer_frames_refused_total",
            "Frames in a peer's name that were refused, by reason.",
            &["peer", "reason"],
        )?;
        let intake = self.counters(
            "memlb_peer_intake_total",
            "What became of a peer's records in the connection tables here, by outcome.",
            &["peer", "outcome"],
        )?;
        for peer in peers {
            let name = peer.name.as_str();
            let counted = [
                (&records, [peer.records_sent, peer.records_received]),
                (&bytes, [peer.bytes_sent, peer.bytes_received]),
            ];
            for (family, values) in counted {
                for (direction, value) in DIRECTIONS.into_iter().zip(values) {
                    family.with_label_values(&[name, direction]).inc_by(value);
                }
            }
            for (family, value) in [
                (&resyncs, peer.resyncs),
                (&lost, peer.lost_records),
                (&relayed, peer.relayed_packets),
            ] {
                family.with_label_values(&[name]).inc_by(value);
            }
            for (family, values) in [(&refused, &peer.refused_frames), (&intake, &peer.intake)] {
                for (label, value) in values {
                    family
                        .with_label_values(&[name, label.as_str()])
                        .inc_by(*value);
                }
            }
        }
        Ok(())
    }
}
