//! `memlb handover`: the planned take-over by a peer.

use std::{net::IpAddr, time::Duration};

use lb_core::milliseconds;
use memlb::control::{HandoverReply, Request};

use super::{
    error::{CliError, CliResult},
    remote::Remote,
    runtime::block_on,
};

/// Let a peer take over, without losing a connection
///
/// Waits until every peer has heartbeats of the workers, knows all connections of this manager and has acknowledged the
/// last one. Then it writes -1 to manager.track_file: keepalived lowers its priority by the weight in its
/// configuration, and the peer takes the addresses. The peer relays packets of connections that begin meanwhile. The
/// lower priority lasts until --undo, also over a restart of the manager. docs/high-availability.md has keepalived's
/// part.
#[derive(clap::Args)]
pub struct Args {
    /// Restore this manager's priority, once it knows all connections of its peers
    #[arg(long)]
    undo: bool,

    /// The maximum time until the peers know all connections
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,

    /// Hand over although a peer lacks connections or cannot be reached
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: &Args) -> CliResult {
    let request = Request::HandOver {
        wait_ms: milliseconds(args.wait),
        force: args.force,
        undo: args.undo,
    };
    let client = args.remote.client();
    let reply: HandoverReply = block_on(client.request_within(&request, args.wait))?;
    args.remote.print(&reply, text)?;
    match reply.still_here.as_slice() {
        [] => Ok(()),
        here => Err(CliError::RunTime(anyhow::anyhow!(
            "{} did not leave this machine: keepalived must track {} with a weight that lowers its priority below the \
             peer's, and must not have nopreempt (`memlb doctor` checks this)",
            list(here),
            reply.track_file
        ))),
    }
}

fn text(reply: &HandoverReply) -> String {
    let HandoverReply {
        handed_over,
        waited_ms,
        missing,
        moved,
        moved_ms,
        still_here,
        track_file,
    } = reply;
    let mut text: String = missing
        .iter()
        .map(|it| format!("warning: {it}\n"))
        .collect();
    if !handed_over {
        text += &format!(
            "the handover is undone: {track_file} has 0; keepalived's own priorities decide whether the addresses \
             return\n"
        );
        return text;
    }
    text += &match missing.as_slice() {
        [] => format!("handed over: every peer knows all connections (after {waited_ms} ms)"),
        _ => "handed over".to_owned(),
    };
    text += &match (moved.as_slice(), still_here.as_slice()) {
        ([], []) => "; this machine had none of the addresses\n".to_owned(),
        ([], _) => "\n".to_owned(),
        (moved, _) => format!("; {} left this machine within {moved_ms} ms\n", list(moved)),
    };
    text
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_what_moved_and_what_was_missing() {
        let reply = HandoverReply {
            handed_over: true,
            waited_ms: 3,
            moved: vec![IpAddr::from([192, 168, 56, 101])],
            moved_ms: 67,
            track_file: "/run/memlb/vrrp-weight".to_owned(),
            ..HandoverReply::default()
        };
        assert_eq!(
            text(&reply),
            "handed over: every peer knows all connections (after 3 ms); 192.168.56.101 left this machine within 67 \
             ms\n"
        );
        let forced = HandoverReply {
            missing: vec!["manager2 is not connected: timed out".to_owned()],
            moved: Vec::new(),
            ..reply
        };
        assert_eq!(
            text(&forced),
            "warning: manager2 is not connected: timed out\nhanded over; this machine had none of the addresses\n"
        );
    }
}
