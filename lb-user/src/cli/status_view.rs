//! The text of `memlb status`.

use std::{collections::BTreeMap, fmt::Write};

use lb_core::{ALL_WORKERS, BackendSnapshot, Bytes, Mode, Policy, ShareReason, counted};
use memlb::status::{
    BackendStatus, FORWARDED, Heartbeats, InterfaceStatus, ServiceStatus, Status, failures,
    format_seconds, refusals, remarks,
};

use super::{
    health, shorten, status_peers,
    table::{Cell, Column, Row, table},
    terminal::{Output, Paint, WrappedText},
};

/// A note that more workers than this have is printed once.
const MAX_REPEATED: usize = 3;

const COLUMNS: [Column; 11] = [
    Column::name("  backend", 0),
    Column::figure("id", 9),
    Column::name("address", 6),
    Column::word("state", 0),
    Column::figure("share", 0),
    Column::figure("age", 3),
    Column::figure("available", 1),
    Column::figure("flows", 0),
    Column::figure("total", 8),
    Column::figure("in", 4),
    Column::figure("out", 4),
];

pub fn status_text(status: &Status, output: Output) -> String {
    let mut text = WrappedText {
        text: String::new(),
        output,
    };
    let uptime = format_seconds(status.uptime_ms);
    text.line(0, &format!("memlb {}, up {uptime}", status.version));
    for interface in &status.interfaces {
        let InterfaceStatus {
            name,
            attachment,
            reason,
            preceded_by,
        } = interface;
        let paint = match interface.is_attached() {
            true => Paint::Plain,
            false => Paint::Bad,
        };
        text.painted(
            0,
            &format!("interface {name}: {attachment} ({reason})"),
            paint,
        );
        if !preceded_by.is_empty() {
            let line = format!(
                "another memlb's programs receive its packets first: {} (memlb doctor)",
                preceded_by.join(", ")
            );
            text.painted(2, &line, Paint::Bad);
        }
    }
    for service in &status.services {
        text.text.push('\n');
        self::service(&mut text, service, status);
    }
    text.text.push('\n');
    let sources: String = status.sources.iter().map(ToString::to_string).collect();
    for line in sources.lines() {
        let indent = line.len() - line.trim_start().len();
        text.line(indent, line.trim_start());
    }
    status_peers::peers(&mut text, status);
    heartbeats(&mut text, &status.heartbeats);
    if status.denied_prefixes > 0 {
        let prefixes = counted(status.denied_prefixes, "prefix");
        text.line(
            0,
            &format!("denied: {prefixes} of clients (memlb deny list)"),
        );
    }
    match &status.counters_problem {
        Some(problem) => {
            let problem = format!("counters: none can be read: {problem}");
            text.painted(0, &problem, Paint::Bad);
        }
        None => text.line(0, &other_packets(status)),
    }
    text.text
}

fn other_packets(status: &Status) -> String {
    let counted = status.verdicts.iter().filter(|(name, count)| {
        let shown_with_backends = FORWARDED.iter().any(|verdict| verdict.name() == *name);
        count.packets > 0 && !shown_with_backends
    });
    let counted = counted.map(|(name, count)| format!(" {name} {}", count.packets));
    let counted: String = counted.collect();
    match counted.is_empty() {
        true => "other packets: none".to_owned(),
        false => format!("other packets:{counted}"),
    }
}

fn heartbeats(text: &mut WrappedText, heartbeats: &Heartbeats) {
    let mut line = format!("heartbeats: {} accepted", heartbeats.accepted);
    for (reason, count) in &heartbeats.refused {
        // Writing to a string cannot fail.
        _ = write!(line, ", {count} {reason}");
    }
    line += &format!("; authentication {}", heartbeats.authentication);
    text.line(0, &line);
    for (reason, refused) in heartbeats.unexpected_refusals() {
        let line = format!("refused lately ({reason}): {refused}");
        text.painted(0, &line, Paint::Warning);
    }
    if !heartbeats.unsigned.is_empty() {
        let unsigned = heartbeats.unsigned.iter();
        let unsigned = unsigned.map(|(worker, count)| format!(" {worker} ({count})"));
        let line = format!("not signed yet:{}", unsigned.collect::<String>());
        text.painted(0, &line, Paint::Warning);
    }
}

fn service(text: &mut WrappedText, service: &ServiceStatus, status: &Status) {
    let mode = match service.mode {
        Mode::Nat => String::new(),
        mode => format!("  mode {mode}"),
    };
    let policy = match (service.policy, service.threshold_bytes) {
        (Policy::Memory, Some(bytes)) if service.threshold == "auto" => {
            format!("memory, threshold auto = {}", Bytes(bytes))
        }
        (Policy::Memory, _) => format!("memory, threshold {}", service.threshold),
        (policy, _) => policy.to_string(),
    };
    let (name, address, protocol) = (&service.name, &service.address, service.protocol);
    let line = format!("service {name} {address}/{protocol}{mode}  policy {policy}");
    text.painted(0, &line, Paint::Bold);
    let selected = selection_text(&service.selected);
    let since = format_seconds(service.since_ms);
    text.line(
        2,
        &format!("selected: {selected} for {since}: {}", service.reason),
    );
    let mut moved = status.kernel_selections.iter();
    if let Some(moved) = moved.find(|it| it.service == service.name) {
        let line = format!(
            "kernel: map selection says {} for {}: another program has written it; the manager writes \
             it again with its next choice",
            selection_text(&moved.selected),
            format_seconds(moved.since_ms)
        );
        text.painted(2, &line, Paint::Bad);
    }
    if let Some(problem) = &service.problem {
        text.line(2, &format!("PROBLEM: {problem}"));
    }
    if let Some(refused) = refusals(status, &service.name) {
        text.painted(2, &refused, Paint::Dim);
    }
    if let Some(waiting) = &service.waiting {
        text.line(2, &format!("waiting: {waiting}"));
    }
    let unchecked = service.backends.iter().filter(|it| it.seen.unchecked);
    let unchecked: Vec<&str> = unchecked.map(|it| it.seen.name.as_str()).collect();
    if !unchecked.is_empty() {
        let workers = match unchecked.len() > MAX_REPEATED {
            true => format!("{} workers", unchecked.len()),
            false => unchecked.join(", "),
        };
        let line = format!(
            "unchecked: {workers} (no check of the agent says whether the server answers: memlb agent --check)"
        );
        text.painted(2, &line, Paint::Dim);
    }
    let mut rows: Vec<Row> = service.backends.iter().map(row).collect();
    let common = common_notes(&mut rows);
    text.text += &table(&COLUMNS, &rows, 2, text.output);
    for (note, count) in common {
        text.painted(2, &format!("{count} workers: {note}"), Paint::Dim);
    }
}

/// Removes the notes that more than [`MAX_REPEATED`] rows have, and returns each with the number of its rows.
fn common_notes(rows: &mut [Row]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for note in rows.iter().flat_map(|row| &row.notes) {
        *counts.entry(note.text.clone()).or_default() += 1;
    }
    counts.retain(|_, count| *count > MAX_REPEATED);
    for row in rows {
        row.notes.retain(|note| !counts.contains_key(&note.text));
    }
    counts.into_iter().collect()
}

/// The text of a selection.
fn selection_text(selected: &str) -> &str {
    match selected {
        ALL_WORKERS => "all that are up",
        name => name,
    }
}

fn row(BackendStatus { seen, traffic }: &BackendStatus) -> Row {
    let mark = if seen.share > 0 { "*" } else { " " };
    let notes = remarks(seen).into_iter();
    Row {
        cells: vec![
            Cell::new(format!("{mark} {}", seen.name)),
            Cell::new(seen.backend_id.to_string()),
            Cell::new(seen.address.clone()),
            Cell::new(seen.state.name()).paint(health::paint(seen.state)),
            Cell::new(shorten::share(seen.share)),
            heartbeat_age(seen.age_ms),
            memory(seen),
            count(traffic.flows),
            count(traffic.connections),
            bytes(traffic.bytes_in),
            bytes(traffic.bytes_out),
        ],
        notes: notes
            .map(|note| Cell::new(note).paint(remark_paint(seen)))
            .chain(failures(traffic).map(|note| Cell::new(note).paint(Paint::Dim)))
            .collect(),
    }
}

/// Remarks on a usual state, such as another worker being selected, are dim.
pub fn remark_paint(seen: &BackendSnapshot) -> Paint {
    let is_usual = |reason: &ShareReason| !reason.kind.is_trouble() && !reason.kind.is_order();
    match &seen.reason {
        Some(reason) if is_usual(reason) && seen.memory_stale_ms.is_none() => Paint::Dim,
        _ => Paint::Warning,
    }
}

/// Age of the last heartbeat.
pub fn heartbeat_age(age_ms: Option<u64>) -> Cell {
    let age = shorten::age(age_ms);
    Cell::new(age.clone()).short(age.replace(' ', ""))
}

/// Available memory, and all of it.
pub fn memory(seen: &BackendSnapshot) -> Cell {
    let short = |bytes| shorten::bytes(Bytes(bytes));
    match (seen.memory_available_bytes, seen.memory_total_bytes) {
        (Some(available), Some(total)) => {
            let whole = format!("{} of {}", Bytes(available), Bytes(total));
            Cell::new(whole).short(format!("{}/{}", short(available), short(total)))
        }
        (Some(available), None) => bytes(available),
        _ => Cell::new("-"),
    }
}

pub fn count(count: u64) -> Cell {
    Cell::new(count.to_string()).short(shorten::count(count))
}

pub fn bytes(bytes: u64) -> Cell {
    Cell::new(Bytes(bytes).to_string()).short(shorten::bytes(Bytes(bytes)))
}
