//! Draws the screen.

use lb_common::verdict::Verdict;
use lb_core::{AdminAction, AdminState, Bytes, Health, MANAGER, ServiceSnapshot, Severity};
use memlb::status::{Backend, Status, remarks};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Paragraph, Row, Table, Wrap},
};

use super::{app::App, bar::bar, rates::Rate};
use crate::cli::remote::format_seconds;

/// From this width on, there is room for every column.
const WIDE: u16 = 130;

const BAR: usize = 12;

pub fn draw(frame: &mut Frame, app: &mut App) {
    let events = frame.area().height / 3;
    let [head, workers, packets, entries, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Min(3),
        Constraint::Length(3),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    self::head(frame, app, head);
    self::workers(frame, app, workers);
    self::packets(frame, app, packets);
    self::entries(frame, app, entries);
    self::foot(frame, app, foot);
}

fn head(frame: &mut Frame, app: &App, area: Rect) {
    let Some(status) = &app.status else {
        return frame.render_widget("asking the manager …", area);
    };
    let mut lines = vec![title(status, app)];
    if let Some((service, place, count)) = app.service() {
        lines.extend(decision(service, place, count));
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), area);
}

fn title<'a>(status: &'a Status, app: &App) -> Line<'a> {
    let interfaces = status
        .interfaces
        .iter()
        .map(|one| format!("  {} on {}", one.attachment, one.name));
    let mut spans = vec![
        "memlb ".bold(),
        status.version.as_str().into(),
        format!("  up {}", format_seconds(status.uptime_ms)).into(),
        interfaces.collect::<String>().dim(),
    ];
    if let Some(trouble) = &app.trouble {
        spans.push(format!("  ✕ {trouble}").red().bold());
    }
    Line::from(spans)
}

fn decision(service: &ServiceSnapshot<Backend>, place: usize, count: usize) -> [Line<'_>; 2] {
    let which = match count {
        1 => String::new(),
        _ => format!("  service {} of {count} ◂▸", place + 1),
    };
    let first = Line::from(vec![
        service.name.as_str().bold().cyan(),
        format!(" {}/{}", service.address, service.protocol).into(),
        format!("  policy {}{which}", service.policy).dim(),
    ]);
    let second = Line::from(vec![
        format!("for {}: ", format_seconds(service.since_ms)).dim(),
        service.reason.as_str().into(),
    ]);
    [first, second]
}

fn workers(frame: &mut Frame, app: &mut App, area: Rect) {
    let wide = area.width >= WIDE;
    let Some((service, ..)) = app.service() else {
        return;
    };
    let (head, widths): (Vec<_>, Vec<_>) = columns(service, wide).into_iter().unzip();
    let rows: Vec<Row> = service
        .backends
        .iter()
        .map(|backend| row(backend, app.rates.of(backend.seen.backend_id.0), wide))
        .collect();
    let table = Table::new(rows, widths)
        .header(Row::new(head).dim())
        .row_highlight_style(Modifier::REVERSED)
        .column_spacing(1);
    frame.render_stateful_widget(table, area, &mut app.rows);
}

/// Returns the columns' heads and widths.
fn columns(service: &ServiceSnapshot<Backend>, wide: bool) -> Vec<(&'static str, Constraint)> {
    let length = Constraint::Length;
    let mut columns = vec![
        ("backend", Constraint::Min(8)),
        ("state", length(13)),
        ("memory", length(12)),
        ("available", length(9)),
        (" heard", length(7)),
        ("share", length(5)),
        ("  open", length(6)),
        (" new/s", length(6)),
    ];
    if wide {
        let addresses = service.backends.iter().map(|it| it.seen.address.len());
        // As wide as an IPv4 address with its port, at least.
        let widest = addresses.fold(21, usize::max);
        let widest = u16::try_from(widest).unwrap_or(u16::MAX);
        columns.insert(1, ("address", length(widest)));
        columns.insert(5, ("       of", length(9)));
        columns.insert(6, (" waits", length(6)));
        columns.push(("      in/s", length(10)));
        columns.push(("     out/s", length(10)));
        columns.push(("   in all", length(9)));
    }
    columns
}

fn row(backend: &Backend, rate: Option<Rate>, wide: bool) -> Row<'static> {
    let Backend { seen, traffic } = backend;
    let style = style(seen.state);
    let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |it| Bytes(it).to_string());
    let share = match (seen.memory_available_bytes, seen.memory_total_bytes) {
        (Some(available), Some(total)) if total > 0 => available as f64 / total as f64,
        _ => 0.0,
    };
    let is_worker = seen.name != MANAGER;
    let mark = if seen.share > 0 { "▸" } else { " " };
    let speed = |figure: fn(Rate) -> f64| {
        rate.map_or("-".to_owned(), |it| Bytes(figure(it) as u64).to_string())
    };
    let fresh = rate.map_or("-".to_owned(), |rate| format!("{:.1}", rate.connections));
    let mut cells = vec![
        Line::from(format!("{mark}{}", seen.name)).style(match seen.share {
            0 => Style::new(),
            _ => Style::new().bold(),
        }),
        Line::styled(state(seen.state), style),
        match is_worker {
            true => Line::styled(bar(share, BAR), style),
            false => Line::default(),
        },
        Line::from(bytes(seen.memory_available_bytes)).right_aligned(),
        Line::from(age(seen.age_ms)).right_aligned(),
        Line::from(part(seen.share)).right_aligned(),
        Line::from(traffic.flows.to_string()).right_aligned(),
        Line::from(fresh).right_aligned(),
    ];
    if wide {
        let waits = seen
            .memory_pressure
            .map_or("-".to_owned(), |it| it.to_string());
        cells.insert(1, Line::from(seen.address.clone()));
        cells.insert(
            5,
            Line::from(bytes(seen.memory_total_bytes)).right_aligned(),
        );
        cells.insert(6, Line::from(waits).right_aligned());
        cells.push(Line::from(speed(|rate| rate.bytes_in)).right_aligned());
        cells.push(Line::from(speed(|rate| rate.bytes_out)).right_aligned());
        cells.push(Line::from(traffic.connections.to_string()).right_aligned());
    }
    Row::new(cells)
}

fn packets(frame: &mut Frame, app: &App, area: Rect) {
    let Some(status) = &app.status else {
        return;
    };
    let mut refused = vec!["refused: ".dim()];
    let mut others = vec!["packets/s: ".dim()];
    for (name, count) in &status.verdicts {
        if Verdict::from_name(name).is_some_and(|it| it.class().is_loss()) {
            if count.packets > 0 {
                refused.push(format!("{name} {}  ", count.packets).yellow());
            }
        } else if let Some(rate) = app.rates.of_verdict(name).filter(|rate| *rate > 0.0) {
            others.push(Span::raw(format!("{name} {rate:.0}  ")));
        }
    }
    if refused.len() == 1 {
        refused.push("none".dim());
    }
    let lines = vec![pointed(app), Line::from(others), Line::from(refused)];
    frame.render_widget(Paragraph::new(lines), area);
}

/// What there is no column for, of the worker that the cursor is on.
fn pointed(app: &App) -> Line<'static> {
    let backend = app.service().and_then(|(service, ..)| {
        let row = app.rows.selected()?;
        service.backends.get(row)
    });
    let Some(Backend { seen, .. }) = backend else {
        return Line::default();
    };
    let remarks = remarks(seen)
        .into_iter()
        .map(|remark| format!(", {remark}"));
    Line::from(vec![
        seen.name.clone().bold(),
        format!(" at {}", seen.address).into(),
        remarks.collect::<String>().yellow(),
    ])
}

fn entries(frame: &mut Frame, app: &App, area: Rect) {
    let title = format!(
        "── events {}",
        "─".repeat(area.width.saturating_sub(10).into())
    );
    let mut lines = vec![Line::from(title).dim()];
    let room = usize::from(area.height.saturating_sub(1));
    for entry in app.entries.iter().take(room) {
        let time = entry.time.get(11..19).unwrap_or(&entry.time);
        let message = match entry.severity {
            Severity::Info => Span::raw(format!("  {}", entry.message)),
            Severity::Warn => format!("▲ {}", entry.message).red(),
        };
        lines.push(Line::from(vec![format!("{time} ").dim(), message]));
    }
    let events = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(events, area);
}

fn foot(frame: &mut Frame, app: &App, area: Rect) {
    let line = match (&app.asked, &app.note) {
        (Some((worker, action)), _) => {
            let what = match action {
                AdminAction::SetState {
                    state: AdminState::Drain,
                } => "drain",
                AdminAction::SetState {
                    state: AdminState::Maintenance,
                } => "take into maintenance",
                AdminAction::SetState {
                    state: AdminState::Terminate,
                } => "terminate",
                AdminAction::Undrain => "give new connections again to",
                AdminAction::Weight { .. } => "weigh",
                AdminAction::Pause { .. } => "pause",
                AdminAction::Resume => "end the pause of",
            };
            Line::from(format!(
                " {what} {worker} in all its services? y to do it, any other key not to "
            ))
            .style(Style::new().fg(Color::Black).bg(Color::Yellow))
        }
        (None, Some(note)) => Line::from(note.as_str()).bold(),
        (None, None) => {
            Line::from("↑↓ worker  ←→ service  d drain  m maintenance  u undrain  q quit").dim()
        }
    };
    frame.render_widget(line, area);
}

fn state(health: Health) -> String {
    let sign = match health {
        Health::Up => "●",
        Health::Down | Health::Terminated => "✕",
        Health::Unhealthy | Health::Ineligible | Health::Unreachable | Health::Failing => "▲",
        Health::Leaving | Health::Draining => "◐",
        Health::Maintenance | Health::Paused => "■",
        Health::Unknown => "○",
    };
    format!("{sign} {}", health.name())
}

fn style(health: Health) -> Style {
    Style::new().fg(match health {
        Health::Up => Color::Green,
        Health::Down
        | Health::Unhealthy
        | Health::Terminated
        | Health::Ineligible
        | Health::Unreachable
        | Health::Failing => Color::Red,
        Health::Leaving | Health::Draining | Health::Maintenance | Health::Paused => Color::Yellow,
        Health::Unknown => Color::DarkGray,
    })
}

fn age(age_ms: Option<u64>) -> String {
    match age_ms {
        None => "-".to_owned(),
        Some(ms) if ms < 10_000 => format!("{ms} ms"),
        Some(ms) if ms < 600_000 => format!("{} s", ms / 1000),
        Some(ms) => format!("{} min", ms / 60_000),
    }
}

/// A part of the whole, given in hundredths of a percent.
fn part(share: u16) -> String {
    match share {
        0 => "-".to_owned(),
        share => format!("{}%", (share + 50) / 100),
    }
}
