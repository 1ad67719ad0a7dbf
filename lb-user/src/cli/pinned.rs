//! `memlb status` without a manager: the content of the pinned maps.

use std::path::{Path, PathBuf};

use memlb::{
    config::{Config, Overrides},
    pinned::{PinnedBackend, PinnedPeer, PinnedService, PinnedStatus},
};

use super::{
    source::{USUAL_CONFIG, kernel_ports},
    status_view::{bytes, count},
    table::{Cell, Column, Row, table},
    terminal::{Output, Paint},
};

const USUAL_PINS: &str = "/sys/fs/bpf/memlb";

/// Reads the pins at `pin_path`, else those of the usual configuration. `None` if there are none, or if this user may
/// not read them.
pub fn pinned(pin_path: Option<&Path>) -> Option<PinnedStatus> {
    let usual = Path::new(USUAL_CONFIG);
    let config = Config::read(usual, &Overrides::default(), kernel_ports()).ok();
    let configured = config.as_ref().map(|it| it.manager.pin_path.clone());
    let pin_path = pin_path.map(Path::to_owned).or(configured);
    let pin_path = pin_path.unwrap_or_else(|| PathBuf::from(USUAL_PINS));
    PinnedStatus::read(&pin_path, config.as_ref())
        .ok()
        .flatten()
}

pub fn pinned_text(status: &PinnedStatus, output: Output) -> String {
    let path = status.pin_path.display();
    let head = format!(
        "no manager answers: this is the content of the maps in {path}. The packet programs continue with the \
         last choice, and no failure of a worker is detected."
    );
    let mut text = output.paint(&output.wrap(&head, 0), Paint::Warning) + "\n";
    for service in &status.services {
        let name = service.name.as_ref().map(|it| format!("{it} "));
        let line = format!(
            "service {}{}/{}",
            name.unwrap_or_default(),
            service.address,
            service.protocol
        );
        text += &format!("\n{}\n", output.paint(&line, Paint::Bold));
        text += &format!("  selected: {}\n", service.selected());
        text += &backends(service, output);
    }
    if !status.peers.is_empty() {
        text.push('\n');
    }
    for PinnedPeer { interface, mac } in &status.peers {
        let line = format!("peer {mac} at {interface}: gets packets of unknown connections");
        text += &(output.wrap(&line, 2) + "\n");
    }
    text
}

fn backends(service: &PinnedService, output: Output) -> String {
    const COLUMNS: [Column; 8] = [
        Column::name("  backend", 0),
        Column::figure("id", 5),
        Column::name("address", 4),
        Column::word("state", 0),
        Column::figure("flows", 0),
        Column::figure("total", 5),
        Column::figure("in", 2),
        Column::figure("out", 2),
    ];
    let rows: Vec<Row> = service.backends.iter().map(row).collect();
    table(&COLUMNS, &rows, 2, output)
}

fn row(backend: &PinnedBackend) -> Row {
    let mark = if backend.is_selected { "*" } else { " " };
    let name = backend.name.as_deref().unwrap_or("-");
    let paint = match backend.state.as_str() {
        "up" => Paint::Good,
        "down" => Paint::Bad,
        _ => Paint::Warning,
    };
    Row::new(vec![
        Cell::new(format!("{mark} {name}")),
        Cell::new(backend.backend_id.to_string()),
        Cell::new(backend.address.clone()),
        Cell::new(backend.state.clone()).paint(paint),
        count(backend.traffic.flows),
        count(backend.traffic.connections),
        bytes(backend.traffic.bytes_in),
        bytes(backend.traffic.bytes_out),
    ])
}
