//! The peers in the text of `memlb status`.

use memlb::{
    handover::HandedOver,
    peer::PeerStatus,
    peer_report::{problems, summary, traffic},
    status::{Status, format_time},
};

use super::terminal::{Paint, WrappedText};

pub fn peers(text: &mut WrappedText, status: &Status) {
    if let Some(handed_over) = &status.handed_over {
        text.painted(0, &sentence(handed_over), Paint::Warning);
    }
    for peer in &status.peers {
        let PeerStatus { name, address, .. } = peer;
        text.line(0, &format!("peer {name} {address}: {}", summary(peer)));
        text.painted(2, &traffic(peer), Paint::Dim);
        for problem in problems(peer) {
            text.painted(2, &problem, Paint::Bad);
        }
    }
}

fn sentence(HandedOver { by, at_ms }: &HandedOver) -> String {
    let by = match by {
        Some(by) => format!("by {by} since {}", format_time(*at_ms)),
        None => "since before this manager started".to_owned(),
    };
    format!("handed over {by}: lower priority until memlb handover --undo")
}
