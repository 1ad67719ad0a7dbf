//! Draws the screen. What does not fit is left out or abbreviated; no figure is cut.

use lb_common::verdict::Verdict;
use lb_core::{AdminAction, AdminState, Severity};
use memlb::{
    peer::PeerState,
    peer_report::{lag, problems},
    status::{BackendStatus, ServiceStatus, Status, failures, format_seconds, refusals, remarks},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Margin, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph, Row, Table},
};

use super::{
    app::App,
    columns::{COLUMNS, row},
};
use crate::cli::{
    status_view::remark_paint,
    table::fit,
    terminal::{Output, Paint},
};

/// A space within a phrase that stays in one line.
const NO_BREAK: char = '\u{a0}';

const HELP: &str = "\
↑ ↓ j k     move to another worker
PgUp PgDn   ten workers up or down
Home End    first or last worker
← → Tab     another service
s           sort by the next: trouble first, name,
            least memory, largest share,
            most connections, most new ones
r           reverse the order
/           search by name, address or state;
            Enter keeps it, Esc ends it
d m         drain the worker; maintenance
u           end drain or maintenance
q Esc       quit

▸ gets new connections now
● up  ✕ down  ▲ cannot serve  ◐ draining
■ maintenance or paused  ○ no heartbeat yet
fail/s: handshakes refused or unanswered
Figures: k, M, G are 1000 to 1000³ connections;
K, M, G are 1024 to 1024³ bytes.";

pub fn draw(frame: &mut Frame, app: &mut App) {
    let area = frame.area();
    let events = area.height / 3;
    let (head, packets, foot) = (
        self::head(app, area.width),
        self::packets(app, area.width),
        self::foot(app, area.width),
    );
    let height = |lines: &[Line], most: u16| {
        Constraint::Length(u16::try_from(lines.len()).unwrap_or(most).min(most))
    };
    let [
        head_area,
        workers_area,
        packets_area,
        entries_area,
        foot_area,
    ] = Layout::vertical([
        height(&head, (area.height / 3).max(3)),
        Constraint::Min(3),
        height(&packets, (area.height / 4).max(3)),
        Constraint::Length(events),
        height(&foot, 3),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), head_area);
    frame.render_widget(Paragraph::new(packets), packets_area);
    frame.render_widget(Paragraph::new(foot), foot_area);
    self::workers(frame, app, workers_area);
    self::entries(frame, app, entries_area);
    if app.shows_help {
        help(frame, area);
    }
    if !app.has_color {
        remove_color(frame);
    }
}

/// Wraps texts at spaces, so that no figure is cut. Words that are longer than a line are shortened.
fn wrapped(spans: &[Span<'static>], width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width.max(1));
    let mut lines: Vec<Line<'static>> = vec![Line::default()];
    let mut used = 0;
    for span in spans {
        for (at, word) in span.content.split(' ').enumerate() {
            let length = word.chars().count();
            if at > 0 && used + 1 + length > width {
                lines.push(Line::default());
                used = 0;
            } else if at > 0 && used > 0 {
                add(&mut lines, Span::styled(" ", span.style));
                used += 1;
            } else if used > 0 && used + length > width {
                lines.push(Line::default());
                used = 0;
            }
            let word = match length > width {
                true => crate::cli::shorten::shorten(&[word.to_owned()], width).concat(),
                false => word.to_owned(),
            };
            let word = word.replace(NO_BREAK, " ");
            used += word.chars().count();
            add(&mut lines, Span::styled(word, span.style));
        }
    }
    lines
}

fn add(lines: &mut [Line<'static>], span: Span<'static>) {
    if let Some(line) = lines.last_mut() {
        line.push_span(span);
    }
}

fn head(app: &App, width: u16) -> Vec<Line<'static>> {
    let Some(status) = &app.status else {
        return vec![Line::from("waiting for the manager …")];
    };
    let mut lines = wrapped(&title(status, app), width);
    let peers = peers(status);
    if !peers.is_empty() {
        lines.extend(wrapped(&peers, width));
    }
    if let Some((service, place, count)) = app.service() {
        for part in decision(service, place, count) {
            lines.extend(wrapped(&part, width));
        }
        if let Some(refused) = refusals(status, &service.name) {
            lines.extend(wrapped(&[refused.yellow()], width));
        }
    }
    lines.push(Line::default());
    lines
}

fn title(status: &Status, app: &App) -> Vec<Span<'static>> {
    let interfaces = status
        .interfaces
        .iter()
        .map(|one| format!("  {} on {}", one.attachment, one.name));
    let mut spans = vec![
        "memlb ".bold(),
        Span::raw(status.version.clone()),
        format!("  up {}", format_seconds(status.uptime_ms)).into(),
        interfaces.collect::<String>().dim(),
    ];
    if let Some(trouble) = &app.trouble {
        spans.push(format!("  ✕ {trouble}").red().bold());
    }
    spans
}

/// The peers, and their problems.
fn peers(status: &Status) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    if status.handed_over.is_some() {
        spans.push("handed over  ".yellow().bold());
    }
    for peer in &status.peers {
        let lag = peer.lag_us.map(|us| format!(" lag {}", lag(us)));
        let lag = lag.filter(|_| peer.state == PeerState::Connected);
        spans.push("peer ".dim());
        let faults = problems(peer);
        if faults.is_empty() {
            spans.push(peer.name.clone().bold());
            spans.push(format!(" ● complete{}  ", lag.unwrap_or_default()).green());
        } else {
            spans.push(format!("▲ {}  ", faults.join("; ")).red());
        }
    }
    spans
}

fn decision(service: &ServiceStatus, place: usize, count: usize) -> [Vec<Span<'static>>; 2] {
    let which = match count {
        1 => String::new(),
        _ => format!("  service {} of {count} ◂▸", place + 1),
    };
    let first = vec![
        service.name.clone().bold().cyan(),
        format!(" {}/{}", service.address, service.protocol).into(),
        format!("  policy {}{which}", service.policy).dim(),
    ];
    let second = vec![
        format!("for {}: ", format_seconds(service.since_ms)).dim(),
        Span::raw(service.reason.clone()),
    ];
    [first, second]
}

fn workers(frame: &mut Frame, app: &mut App, area: Rect) {
    let rows: Vec<_> = (app.shown().into_iter())
        .map(|backend| row(backend, app.rates.of(backend.seen.backend_id.0)))
        .collect();
    let fitted = fit(COLUMNS, &rows, 1, Some(area.width.into()));
    let line = |place: &usize, text: String, style: Style| {
        let line = Line::from(text).style(style);
        match COLUMNS[*place].is_right {
            true => line.right_aligned(),
            false => line,
        }
    };
    let head = fitted.shown.iter();
    let head = head.map(|it| line(it, COLUMNS[*it].head.to_owned(), Style::new().dim()));
    let head = Row::new(head.collect::<Vec<_>>());
    let rows = rows.iter().zip(fitted.texts).map(|(row, texts)| {
        let cells = fitted.shown.iter().zip(texts);
        let cells = cells.map(|(place, text)| line(place, text, style(row.cells[*place].paint)));
        Row::new(cells.collect::<Vec<_>>())
    });
    let widths = fitted.widths.iter();
    let widths = widths.map(|it| Constraint::Length(u16::try_from(*it).unwrap_or(u16::MAX)));
    let table = Table::new(rows, widths)
        .header(head)
        .row_highlight_style(Modifier::REVERSED)
        .column_spacing(1);
    frame.render_stateful_widget(table, area, &mut app.rows);
}

fn style(paint: Paint) -> Style {
    match paint {
        Paint::Plain => Style::new(),
        Paint::Good => Style::new().fg(Color::Green),
        Paint::Warning => Style::new().fg(Color::Yellow),
        Paint::Bad => Style::new().fg(Color::Red),
        Paint::Dim => Style::new().fg(Color::DarkGray),
        Paint::Bold => Style::new().bold(),
    }
}

/// The worker under the cursor, and the packets that are not forwarded.
fn packets(app: &App, width: u16) -> Vec<Line<'static>> {
    let Some(status) = &app.status else {
        return Vec::new();
    };
    let mut refused = vec!["refused:".dim()];
    let mut others = vec!["packets/s:".dim()];
    for (name, count) in &status.verdicts {
        if Verdict::from_name(name).is_some_and(|it| it.class().is_loss()) {
            if count.packets > 0 {
                refused.push(format!(" {name} {}", count.packets).yellow());
            }
        } else if let Some(rate) = app.rates.of_verdict(name).filter(|rate| *rate > 0.0) {
            others.push(Span::raw(format!(" {name} {rate:.0}")));
        }
    }
    for spans in [&mut refused, &mut others] {
        if spans.len() == 1 {
            spans.push(" none".dim());
        }
    }
    let lines = [pointed(app), others, refused];
    lines
        .iter()
        .flat_map(|spans| wrapped(spans, width))
        .collect()
}

/// The remarks on the worker under the cursor.
fn pointed(app: &App) -> Vec<Span<'static>> {
    let Some(BackendStatus { seen, traffic }) = app.pointed() else {
        return match app.search.is_empty() {
            true => Vec::new(),
            false => vec![format!("no worker matches {:?}", app.search).yellow()],
        };
    };
    let unchecked = seen.unchecked.then(|| "unchecked".to_owned());
    let remarks = remarks(seen).into_iter().chain(unchecked);
    let remarks = remarks.chain(failures(traffic));
    let remarks = remarks.map(|remark| format!(", {remark}"));
    vec![
        seen.name.clone().bold(),
        format!(" at {}", seen.address).into(),
        Span::styled(remarks.collect::<String>(), style(remark_paint(seen))),
    ]
}

fn entries(frame: &mut Frame, app: &App, area: Rect) {
    let title = format!(
        "── events {}",
        "─".repeat(area.width.saturating_sub(10).into())
    );
    let mut lines = vec![Line::from(title).dim()];
    for entry in app.entries.iter().take(area.height.into()) {
        let time = entry.time.get(11..19).unwrap_or(&entry.time);
        let message = match entry.severity {
            Severity::Info => Span::raw(format!("  {}", entry.message)),
            Severity::Warn => format!("▲ {}", entry.message).red(),
        };
        lines.extend(wrapped(&[format!("{time} ").dim(), message], area.width));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn foot(app: &App, width: u16) -> Vec<Line<'static>> {
    let bar = Style::new().fg(Color::Black).bg(Color::Yellow);
    if let Some((worker, action)) = &app.unconfirmed {
        let question = format!(
            "{} {worker} in all its services? y to do it, any other key not to",
            action_text(action)
        );
        return wrapped(&[Span::styled(question, bar)], width);
    }
    if app.is_searching {
        let search = format!("search: {}█  (Enter keeps it, Esc ends it)", app.search);
        return wrapped(&[search.bold()], width);
    }
    if let Some(note) = &app.note {
        return wrapped(&[note.clone().bold()], width);
    }
    let mut order = format!("sorted: {}", app.order.name());
    if app.is_reversed {
        order += ", reversed";
    }
    if !app.search.is_empty() {
        order += &format!(", only {:?} (Esc shows all)", app.search);
    }
    let keys = "  ?\u{a0}help  /\u{a0}search  s\u{a0}sort  d\u{a0}drain  m\u{a0}maintenance  u\u{a0}undrain  \
                q\u{a0}quit";
    wrapped(&[order.into(), keys.dim()], width)
}

fn action_text(action: &AdminAction) -> &'static str {
    match action {
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
    }
}

fn help(frame: &mut Frame, area: Rect) {
    let lines: Vec<&str> = HELP.lines().collect();
    let widest = lines.iter().map(|it| it.chars().count()).max().unwrap_or(0);
    let fit = |length: usize, room: u16| u16::try_from(length + 2).unwrap_or(room).min(room);
    let (width, height) = (fit(widest + 2, area.width), fit(lines.len(), area.height));
    let output = Output {
        width: Some(usize::from(width.saturating_sub(4))),
        has_color: false,
    };
    let text = output.wrap_lines(HELP);
    let window = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, window);
    frame.render_widget(Block::bordered().title("keys; any key closes"), window);
    frame.render_widget(Paragraph::new(text), window.inner(Margin::new(2, 1)));
}

/// Removes colours. Text on a coloured background is shown reversed.
fn remove_color(frame: &mut Frame) {
    for cell in &mut frame.buffer_mut().content {
        if cell.bg != Color::Reset {
            cell.modifier |= Modifier::REVERSED;
        }
        (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
    }
}
