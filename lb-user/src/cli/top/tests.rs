//! The screen as text, compared with approved screens, and the keys.
//!
//! With `MEMLB_NEW_SCREENS=1` the files in `screens/` are written, to be reviewed.

use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use lb_core::{AdminAction, AdminState, Core, Memory, Pressure, Report, Severity, WorkerState};
use memlb::{
    config::{Config, Overrides, Pinned},
    control::{AdminReply, Request},
    datapath::{BackendTraffic, Packets, Stats},
    event_stream::EventRecord,
    status::{Heartbeats, Interface, ManagerSnapshot, Status},
};
use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

use super::{
    app::{App, UserAction},
    view,
};

const MIB: u64 = 1 << 20;

#[test]
fn fits_a_small_terminal() {
    expect("80x24", &mut lab(), 80, 24);
}

#[test]
fn shows_more_on_a_wide_one() {
    expect("160x50", &mut lab(), 160, 50);
}

#[test]
fn two_hundred_workers_scroll() {
    let mut app = app(200, 0);
    for _ in 0..120 {
        app.handle_key(KeyCode::Down.into());
    }
    expect("200-workers", &mut app, 80, 24);
}

#[test]
fn asks_before_it_orders() {
    let mut app = lab();
    app.handle_key(KeyCode::Down.into());
    assert_eq!(app.handle_key(KeyCode::Char('d').into()), None);
    expect("asked", &mut app, 80, 24);
    assert_eq!(
        app.handle_key(KeyCode::Char('y').into()),
        Some(UserAction::Order(Request::Order {
            worker: "worker2".to_owned(),
            service: None,
            order: AdminAction::SetState {
                state: AdminState::Drain
            },
            reason: None,
        }))
    );
    app.handle_reply(Ok(AdminReply {
        order: "worker2 is drained".to_owned(),
        without_worker: vec!["web".to_owned()],
        warnings: Vec::new(),
        not_saved: None,
    }));
    let screen = screen(&mut app, 80, 24);
    assert!(
        screen.contains("worker2 is drained; web has no worker now"),
        "{screen}"
    );

    // Any other key takes the question back, and does nothing else.
    for key in [
        KeyCode::Char('n'),
        KeyCode::Char('q'),
        KeyCode::Enter,
        KeyCode::Char('u'),
    ] {
        app.handle_key(KeyCode::Char('m').into());
        assert_eq!(app.handle_key(key.into()), None);
        assert_eq!(app.asked, None);
    }
    assert_eq!(
        app.handle_key(KeyCode::Char('q').into()),
        Some(UserAction::Leave)
    );
}

#[test]
fn the_manager_itself_cannot_be_held() {
    let mut app = lab();
    app.handle_key(KeyCode::End.into());
    assert_eq!(app.handle_key(KeyCode::Char('d').into()), None);
    assert_eq!(app.asked, None);
    assert!(screen(&mut app, 80, 24).contains("the manager itself cannot be held"));
}

#[test]
fn keeps_the_last_figures_when_the_manager_goes() {
    let mut app = lab();
    app.set_disconnected("no manager answers".to_owned());
    let screen = screen(&mut app, 80, 24);
    assert!(
        screen.contains("no manager answers") && screen.contains("worker1"),
        "{screen}"
    );
}

#[test]
fn no_size_is_too_small_to_draw() {
    let mut app = app(200, 0);
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 10), (129, 8), (300, 100)] {
        screen(&mut app, width, height);
    }
    screen(&mut App::default(), 80, 24);
}

/// Three workers, of which one is down and one is drained.
fn lab() -> App {
    let mut app = app(3, 90);
    for (id, severity, message) in [
        (
            1,
            Severity::Info,
            "worker1 is up (was unknown), 450.0 MiB available of 700.0 MiB",
        ),
        (
            2,
            Severity::Info,
            "web: manager -> worker1: worker1 is up with 450.0 MiB available",
        ),
        (
            3,
            Severity::Warn,
            "worker3 is down: nothing heard for 1501 ms",
        ),
    ] {
        app.add_event(EventRecord {
            id,
            time: format!("2026-11-23T04:05:0{id}.123Z"),
            severity,
            message: message.to_owned(),
            event: serde_json::Map::new(),
        });
    }
    app
}

/// An application that has seen `workers` workers twice, a second apart, with so many connections
/// in between.
fn app(workers: usize, connections: u64) -> App {
    let start = Instant::now();
    let mut app = App::default();
    app.update_status(status(workers, 0, start), start);
    app.update_status(
        status(workers, connections, start),
        start + Duration::from_secs(1),
    );
    app
}

fn status(workers: usize, connections: u64, start: Instant) -> Status {
    let config = Config::parse(&configuration(workers), "test", &Overrides::default(), None);
    let mut core = Core::new(config.unwrap().settings(&Pinned::default()), start);
    for number in 1..=workers as u64 {
        let report = Report {
            worker: format!("worker{number}"),
            sequence: None,
            signed: false,
            memory_stale: None,
            memory: Memory {
                available_bytes: (550 - 100 * (number % 5)) * MIB,
                total_bytes: Some(700 * MIB),
            },
            pressure: Some(Pressure(125)),
            state: WorkerState::Ready,
            healthy: true,
            checked: false,
            translates: Vec::new(),
            interval: None,
        };
        // The third one falls silent.
        let heard = start + Duration::from_millis(if number == 3 { 0 } else { 1480 });
        assert_eq!(core.handle_heartbeat(&report, heard).refusal(), None);
    }
    let now = start + Duration::from_millis(1524);
    core.handle_timeout(now);
    let traffic = BackendTraffic {
        nat_ports: 28_672,
        flows: 12,
        half_open: 1,
        connections: 260 + connections,
        packets_in: 9000,
        bytes_in: 21 * MIB + connections * 1000,
        packets_out: 8000,
        bytes_out: 64 * MIB + connections * 20_000,
        ..BackendTraffic::default()
    };
    let packets = |packets| Packets {
        packets,
        bytes: 60 * packets,
    };
    let stats = Stats {
        backends: [(1, traffic)].into(),
        verdicts: [
            ("other_protocol", packets(10 + connections)),
            ("no_flow", packets(3)),
        ]
        .into(),
        ..Stats::default()
    };
    let decided = ManagerSnapshot {
        denied_prefixes: 0,
        uptime_ms: 8_040_000,
        config_file: None,
        interfaces: vec![Interface {
            name: "eth1".to_owned(),
            attachment: "tc".to_owned(),
            reason: String::new(),
        }],
        services: core.snapshot(now).services,
        heartbeats: Heartbeats::default(),
    };
    let mut status = Status::new(decided, &stats);
    status.version = "0.1.0".to_owned();
    status
}

fn configuration(workers: usize) -> String {
    let mut text =
        "[manager]\ninterfaces = [\"eth1\"]\n[[service]]\nname = \"web\"\npolicy = \"memory\"
address = \"192.168.56.101:80\"\nfallback = \"192.168.56.101:8080\"\nworkers = [\n"
            .to_owned();
    for number in 1..=workers {
        let port = 8080 + number;
        writeln!(
            text,
            "{{ name = \"worker{number}\", address = \"192.168.56.103:{port}\" }},"
        )
        .unwrap();
    }
    text + "]\n"
}

fn screen(app: &mut App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for row in buffer.content.chunks(width.into()) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn expect(name: &str, app: &mut App, width: u16, height: u16) {
    let screen = screen(app, width, height);
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/cli/top/screens/{name}.txt"));
    if std::env::var_os("MEMLB_NEW_SCREENS").is_some() {
        std::fs::write(&file, &screen).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    assert!(
        screen == expected,
        "{name} is now:\n{screen}\nand was:\n{expected}"
    );
}
