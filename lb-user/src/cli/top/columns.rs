//! The columns of the workers, and the ranks by which they are left out.

use lb_core::MANAGER;
use memlb::status::BackendStatus;

use super::{bar::bar, rates::Rate};
use crate::cli::{
    health::{paint, sign},
    shorten::{self, share},
    status_view::{bytes, count, heartbeat_age},
    table::{Cell, Column, Row},
    terminal::Paint,
};

const BAR: usize = 12;

pub const COLUMNS: &[Column] = &[
    Column::name("backend", 0),
    Column::name("address", 8),
    Column::word("state", 0),
    Column::word("memory", 6),
    Column::figure("available", 3).at_least(9),
    Column::figure("of", 7).at_least(9),
    Column::figure("waits", 10).at_least(6),
    Column::figure("age", 4).at_least(7),
    Column::figure("share", 1).at_least(5),
    Column::figure("open", 0).at_least(5),
    Column::figure("new/s", 2).at_least(5),
    Column::figure("fail/s", 3).at_least(6),
    Column::figure("in/s", 5).at_least(5),
    Column::figure("out/s", 5).at_least(5),
    Column::figure("in all", 9).at_least(6),
];

pub fn row(backend: &BackendStatus, rate: Option<Rate>) -> Row {
    let BackendStatus { seen, traffic } = backend;
    let state = paint(seen.state);
    let figure = |figure: Option<u64>| figure.map_or(Cell::new("-"), bytes);
    let full = match (seen.memory_available_bytes, seen.memory_total_bytes) {
        (Some(available), Some(total)) if total > 0 => available as f64 / total as f64,
        _ => 0.0,
    };
    let mark = if seen.share > 0 { "▸" } else { " " };
    let name = Cell::new(format!("{mark}{}", seen.name));
    let waits = seen
        .memory_pressure
        .map_or("-".to_owned(), |it| it.to_string());
    let rate_of = |figure: fn(Rate) -> f64| rate.map(|it| figure(it) as u64);
    Row::new(vec![
        name.paint(match seen.share {
            0 => Paint::Plain,
            _ => Paint::Bold,
        }),
        Cell::new(seen.address.clone()),
        Cell::new(format!("{} {}", sign(seen.state), seen.state.name())).paint(state),
        match seen.name == MANAGER {
            true => Cell::default(),
            false => Cell::new(bar(full, BAR)).paint(state),
        },
        figure(seen.memory_available_bytes),
        figure(seen.memory_total_bytes),
        Cell::new(waits),
        heartbeat_age(seen.age_ms),
        Cell::new(share(seen.share)),
        count(traffic.flows),
        rate.map_or(Cell::new("-"), |it| connection_rate(it.connections)),
        rate.map_or(Cell::new("-"), |it| match it.failed > 0.0 {
            true => connection_rate(it.failed).paint(Paint::Bad),
            false => Cell::new("0"),
        }),
        figure(rate_of(|it| it.bytes_in)),
        figure(rate_of(|it| it.bytes_out)),
        count(traffic.connections),
    ])
}

/// New connections a second.
fn connection_rate(rate: f64) -> Cell {
    match rate < 1_000.0 {
        true => Cell::new(format!("{rate:.1}")),
        false => Cell::new(format!("{rate:.0}")).short(shorten::count(rate as u64)),
    }
}
