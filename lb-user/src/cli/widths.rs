//! Eighty columns are enough for what the verbs print of two workers, and no figure is cut below that.

use std::time::Instant;

use memlb::{
    control::DenyReply,
    doctor::{Diagnosis, Finding},
    event_stream::EventRecord,
    explain::{ExplainedConnection, Explanation, NextConnection},
    flows::{FlowRow, Flows},
    manager::Reloaded,
    pinned::{PinnedBackend, PinnedPeer, PinnedService, PinnedStatus},
    status::{KernelSelection, Status},
    trace::Packet,
};
use serde_json::{Value, json};

use super::{
    check::{self, CheckReport},
    deny,
    doctor::diagnosis_text,
    events::event_text,
    flows::flows_text,
    pinned::pinned_text,
    reload::reloaded_text,
    status::{services_text, worker_rows, workers_text},
    status_view::status_text,
    terminal::Output,
    top,
    trace::packet_text,
};

/// Two workers; the first is drained, for a reason of many words.
fn status() -> Status {
    let mut status = top::tests::status(2, 90, Instant::now());
    let service = &mut status.services[0];
    service.reason = "worker1 had 390.6 MiB available, 97.7 MiB more than worker2 (293.0 MiB \
                      available), above the threshold of 64.0 MiB"
        .to_owned();
    let drained = json!({
        "value": "drain", "by": "root", "at_ms": 1_700_000_000_000_u64,
        "reason": "the machine gets a new disk, and then a new kernel with another configuration",
    });
    service.backends[0].seen.admin_state = serde_json::from_value(drained).unwrap();
    status.kernel_selections = vec![KernelSelection {
        service: "web".to_owned(),
        selected: "worker2".to_owned(),
        since_ms: 75_000,
    }];
    status
}

fn row() -> FlowRow {
    from(json!({
        "protocol": "tcp", "client": "192.168.156.110:43806", "service": "web",
        "service_address": "192.168.156.101:443", "worker": "worker1",
        "worker_address": "192.168.156.103:8081", "state": "open", "age_ms": 3_725_000,
        "idle_ms": 65_000, "backend_id": 1, "bytes_in": 123_456_789, "bytes_out": 987_654_321_u64,
    }))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// What every verb prints.
fn texts(output: Output) -> Vec<(&'static str, String)> {
    let status = status();
    let services = status.services.clone();
    let rows = worker_rows(services.clone());
    let (total, flows) = (2, vec![row()]);
    let event: EventRecord = from(json!({
        "id": 1, "time": "2026-01-02T03:04:05.678Z", "severity": "warn", "event": "worker_down",
        "message": "worker1 is down: no heartbeat for 1501 ms, and its connections are reset now",
    }));
    let packet: Packet = from(json!({
        "time": "2026-01-02T03:04:05.678901Z", "edge": "tc_in", "interface": "eth1",
        "protocol": "tcp", "kind": "SYN", "direction": "to_service",
        "client": "192.168.156.110:43806", "service_address": "192.168.156.101:443",
        "service": "web", "worker": "worker1", "worker_address": "192.168.156.103:8081",
        "leaves": null, "verdict": "to_backend", "packets": 1, "bytes": 74,
    }));
    let next = services.iter().cloned();
    let explanation = Explanation {
        client: "192.168.156.110".to_owned(),
        denied: None,
        connections: vec![ExplainedConnection {
            connection: row(),
            begun_ms: 0,
            decision: None,
        }],
        total: 1,
        next: next
            .map(|service| NextConnection {
                service: service.map_backends(|backend| backend.seen),
                failures: Default::default(),
                absent: Default::default(),
            })
            .collect(),
    };
    let backend = |name: &str| PinnedBackend {
        name: Some(name.to_owned()),
        backend_id: 1,
        address: "192.168.156.103:8081".to_owned(),
        state: "draining".to_owned(),
        is_selected: true,
        traffic: status.services[0].backends[0].traffic,
    };
    let pinned = PinnedStatus {
        pin_path: "/sys/fs/bpf/memlb".into(),
        services: vec![PinnedService {
            name: Some("web".to_owned()),
            address: "192.168.56.101:80".to_owned(),
            protocol: "tcp".to_owned(),
            is_spread: false,
            backends: vec![backend("worker1"), backend("worker2")],
        }],
        peers: vec![PinnedPeer {
            interface: "enp0s31f6np0n1n2".to_owned(),
            mac: "02:00:00:00:01:4d".to_owned(),
        }],
    };
    let long = "heartbeats.authentication is \"off\": every host that can reach UDP 0.0.0.0:9999 can steer \
                connections; make keys with memlb keygen";
    let diagnosis = Diagnosis::from(vec![
        Finding::ok("kernel", "Linux 6.18"),
        Finding::problem("heartbeats", long, "memlb keygen"),
        Finding::warning("interface", long, "ip link set eth1 up"),
    ]);
    let checked = CheckReport {
        file: "/etc/memlb/memlb.toml".as_ref(),
        services: 12,
        backends: 40,
        peers: 1,
        digest: String::new(),
        warnings: vec![long.to_owned()],
    };
    let reloaded: Reloaded = from(json!({ "changes": [long, long], "warnings": [long] }));
    let denied: DenyReply = from(json!({
        "changed": [{ "prefix": "2001:db8:1234:5678::/64", "by": "root", "at_ms": 1_700_000_000_000_u64, "reason": long }],
        "connections_ended": 3, "warnings": [long], "not_saved": long,
    }));
    vec![
        ("doctor", diagnosis_text(&diagnosis, output)),
        ("check", check::summary(&checked, output)),
        ("reload", reloaded_text(&reloaded, output)),
        ("deny", deny::added(&denied, output)),
        ("status", status_text(&status, output)),
        ("services", services_text(&services, output)),
        ("workers", workers_text(&rows, output)),
        ("flows", flows_text(&Flows { total, flows }, output)),
        ("events", event_text(&event, output)),
        ("trace", packet_text(&packet, output)),
        ("explain", output.wrap_lines(&explanation.to_string())),
        ("status without a manager", pinned_text(&pinned, output)),
    ]
}

#[test]
fn eighty_columns_are_enough_for_every_verb() {
    for width in [60, 80, 120] {
        let output = Output {
            width: Some(width),
            has_color: false,
        };
        for (verb, text) in texts(output) {
            for line in text.lines() {
                let length = line.chars().count();
                assert!(
                    length <= width,
                    "memlb {verb}: {length} characters: {line}\n{text}"
                );
            }
        }
    }
}

#[test]
fn states_and_problems_have_colours_where_there_are_some() {
    let text = |has_color| {
        let width = Some(80);
        let texts = texts(Output { width, has_color });
        let texts = texts.into_iter().map(|(_, text)| text);
        texts.collect::<String>()
    };
    assert!(!text(false).contains('\x1b'));
    let painted = text(true);
    assert!(painted.contains("\x1b[32mup\x1b[0m"), "{painted}");
    for part in [
        "\x1b[31mproblem\x1b[0m  heartbeats",
        "\x1b[31m1 problem\x1b[0m",
    ] {
        assert!(painted.contains(part), "{painted}");
    }
    assert!(
        painted.contains("\x1b[33mwarning: worker1 is down"),
        "{painted}"
    );
}

#[test]
fn repeated_note_is_printed_once() {
    let status = top::tests::status(200, 0, Instant::now());
    let output = Output {
        width: Some(80),
        has_color: false,
    };
    let text = status_text(&status, output);
    assert!(text.contains("workers: policy memory selects "), "{text}");
    assert!(text.lines().count() < 220, "{text}");
}
