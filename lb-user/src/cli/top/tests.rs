//! The screen as text, compared with approved screens, and the keys.
//!
//! With `MEMLB_NEW_SCREENS=1` the files in `screens/` and `docs/top.svg` are written, to be reviewed.

use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use lb_core::{AdminAction, AdminState, Core, Memory, Pressure, Report, Severity, WorkerState};
use memlb::{
    config::{Config, Overrides, PinnedIds},
    control::{AdminReply, Request},
    datapath::{BackendTraffic, Packets, Stats},
    event_stream::EventRecord,
    peer::{PeerState, PeerStatus},
    status::{Heartbeats, InterfaceStatus, ManagerSnapshot, Status},
};
use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, crossterm::event::KeyCode};

use super::{
    app::{App, UserAction},
    columns::row,
    view,
};

const MIB: u64 = 1 << 20;

#[test]
fn fits_a_small_terminal() {
    assert_screen("80x24", &mut lab(), 80, 24);
}

#[test]
fn shows_more_on_a_wide_one() {
    assert_screen("160x50", &mut lab(), 160, 50);
}

#[test]
fn leaves_columns_out_on_a_narrow_one() {
    assert_screen("60x24", &mut lab(), 60, 24);
    assert_screen("40x24", &mut lab(), 40, 24);
}

#[test]
fn shows_the_peers_and_what_they_lack() {
    let mut app = lab();
    let peer = |name: &str, complete| PeerStatus {
        name: name.to_owned(),
        state: PeerState::Connected,
        complete,
        received_complete: true,
        lag_us: Some(420),
        ..PeerStatus::default()
    };
    if let Some(status) = &mut app.status {
        status.peers = vec![peer("manager2", true), peer("manager3", false)];
    }
    assert_screen("peers", &mut app, 80, 24);
}

#[test]
fn shows_the_refusals_of_the_service() {
    let mut app = lab();
    let of = |service: &str, count| {
        (
            service.to_owned(),
            [("no_backend".to_owned(), count)].into(),
        )
    };
    if let Some(status) = &mut app.status {
        status.refusals = [of("web", 17), of("other", 5)].into();
    }
    let screen = screen(&mut app, 80, 24);
    assert!(
        screen.contains("refused by the manager: no_backend 17"),
        "{screen}"
    );
    assert!(!screen.contains("no_backend 5"), "{screen}");
}

#[test]
fn two_hundred_workers_scroll() {
    let mut app = app(200, 0);
    for _ in 0..120 {
        app.handle_key(KeyCode::Down.into());
    }
    assert_screen("200-workers", &mut app, 80, 24);
}

#[test]
fn confirms_an_order_before_it_is_sent() {
    let mut app = lab();
    // Below worker3, which is down, and worker1.
    app.handle_key(KeyCode::Down.into());
    app.handle_key(KeyCode::Down.into());
    assert_eq!(app.handle_key(KeyCode::Char('d').into()), None);
    assert_screen("asked", &mut app, 80, 24);
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
        assert_eq!(app.unconfirmed, None);
    }
    assert_eq!(
        app.handle_key(KeyCode::Char('q').into()),
        Some(UserAction::Leave)
    );
}

#[test]
fn fallback_cannot_be_drained() {
    let mut app = lab();
    app.handle_key(KeyCode::End.into());
    assert_eq!(app.handle_key(KeyCode::Char('d').into()), None);
    assert_eq!(app.unconfirmed, None);
    assert!(screen(&mut app, 80, 24).contains("the fallback cannot be drained"));
}

#[test]
fn trouble_comes_first_and_the_cursor_stays_on_its_worker() {
    let mut app = app(200, 0);
    let first = |app: &App| app.shown()[0].seen.name.clone();
    assert_eq!(first(&app), "worker3");
    app.handle_key(KeyCode::Down.into());
    let pointed = |app: &App| app.pointed().map(|it| it.seen.name.clone());
    assert_eq!(pointed(&app).as_deref(), Some("worker1"));
    app.handle_key(KeyCode::Char('s').into());
    assert_eq!(first(&app), "worker1");
    app.handle_key(KeyCode::Char('s').into());
    // Of those with the least memory, the first.
    assert_eq!(first(&app), "worker4");
    assert_eq!(pointed(&app).as_deref(), Some("worker1"));
    app.handle_key(KeyCode::Char('r').into());
    assert_eq!(first(&app), "manager");
    assert_eq!(pointed(&app).as_deref(), Some("worker1"));
    let text = screen(&mut app, 80, 24);
    assert!(text.contains("sorted: least memory, reversed"), "{text}");
}

#[test]
fn searches_by_name_address_or_state() {
    let mut app = app(200, 0);
    let search = |app: &mut App, text: &str| {
        app.handle_key(KeyCode::Char('/').into());
        for character in text.chars() {
            app.handle_key(KeyCode::Char(character).into());
        }
        app.handle_key(KeyCode::Enter.into());
        app.shown().len()
    };
    assert_eq!(search(&mut app, "WORKER20"), 2);
    assert_eq!(search(&mut app, ":8280"), 1);
    assert_eq!(search(&mut app, "down"), 1);
    assert_eq!(search(&mut app, "nothing"), 0);
    let text = screen(&mut app, 80, 24);
    assert!(text.contains("no worker matches \"nothing\""), "{text}");
    assert_eq!(app.handle_key(KeyCode::Esc.into()), None);
    assert_eq!(app.shown().len(), 201);
    assert_eq!(app.handle_key(KeyCode::Esc.into()), Some(UserAction::Leave));
}

#[test]
fn explains_its_keys() {
    let mut app = lab();
    app.handle_key(KeyCode::Char('?').into());
    assert_screen("help", &mut app, 80, 24);
    // A key closes the window, and does nothing else.
    assert_eq!(app.handle_key(KeyCode::Char('q').into()), None);
    assert!(!app.shows_help);
}

#[test]
fn the_picture_in_the_documents_is_of_this_screen() {
    let mut app = lab();
    app.has_color = true;
    app.handle_key(KeyCode::Down.into());
    let picture = super::picture::svg(&buffer(&mut app, 100, 24));
    assert_file("../docs/top.svg", &picture);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn no_figure_is_cut_at_any_width(
        width in 40_u16..200,
        workers in 1_usize..30,
        figures in prop::array::uniform4(0_u64..u64::MAX / 4),
        shares in prop::collection::vec(0_u16..=10_000, 30),
        long_names: bool,
    ) {
        let start = Instant::now();
        let mut status = status(workers, 90, start);
        for (place, backend) in status.services[0].backends.iter_mut().enumerate() {
            let scale = |figure: u64| figure >> (7 * place).min(63);
            backend.traffic = BackendTraffic {
                flows: scale(figures[0]),
                connections: scale(figures[1]),
                ..backend.traffic
            };
            backend.seen.memory_total_bytes = Some(scale(figures[2]));
            backend.seen.memory_available_bytes = Some(scale(figures[3]));
            backend.seen.age_ms = Some(scale(figures[2]));
            backend.seen.share = shares[place];
            if long_names {
                backend.seen.name = format!("worker-of-the-rack-{place}-in-the-first-hall");
                backend.seen.address = format!("[2001:db8:1234:5678::{place:x}]:8080");
            }
        }
        let mut app = App::default();
        app.update_status(status.clone(), start);
        for backend in &mut status.services[0].backends {
            backend.traffic.bytes_in += figures[0];
            backend.traffic.connections += figures[1] >> 20;
        }
        app.update_status(status.clone(), start + Duration::from_secs(1));
        let text = screen(&mut app, width, 60);
        let mut whole = format!(
            "memlb {} 2h 14m eth1 {} {} {} ",
            status.version, status.services[0].address, status.services[0].reason, "0s:"
        );
        let service = format!("{}/{} ", status.services[0].address, status.services[0].protocol);
        whole += &service;
        for (name, count) in &status.verdicts {
            whole += &format!("{name} {} ", count.packets);
        }
        for backend in app.shown() {
            let remarks = memlb::status::remarks(&backend.seen).join(", ");
            whole += &format!("{} {} {remarks} ", backend.seen.name, backend.seen.address);
            for cell in row(backend, app.rates.of(backend.seen.backend_id.0)).cells {
                whole += &format!("{} {} ", cell.text, cell.short.unwrap_or_default());
            }
        }
        let words: std::collections::BTreeSet<&str> = whole.split_whitespace().collect();
        for word in text.split_whitespace() {
            let word = word.trim_end_matches(',');
            let is_figure = word.contains(|it: char| it.is_ascii_digit()) && !word.contains('…');
            prop_assert!(!is_figure || words.contains(word), "{} in {}", word, text);
        }
        // Every worker is on the screen, and different from the others.
        let rows = text.lines().skip_while(|it| !it.starts_with("backend")).skip(1);
        let names = rows.take(workers).map(|it| it.trim_start_matches([' ', '▸']));
        let names = names.filter_map(|it| it.split_whitespace().next());
        let names: std::collections::BTreeSet<&str> = names.collect();
        prop_assert!(names.len() >= workers.min(12), "{}", text);
    }
}

#[test]
fn last_figures_stay_when_the_manager_stops() {
    let mut app = lab();
    app.set_disconnected("no manager answers".to_owned());
    let screen = screen(&mut app, 80, 24);
    assert!(
        screen.contains("no manager answers") && screen.contains("worker1"),
        "{screen}"
    );
}

#[test]
fn every_terminal_size_can_be_drawn() {
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
            "worker3 is down: no heartbeat for 1501 ms",
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

pub fn status(workers: usize, connections: u64, start: Instant) -> Status {
    let config = Config::parse(&configuration(workers), "test", &Overrides::default(), None);
    let mut core = Core::new(config.unwrap().settings(&PinnedIds::default()), start);
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
        sources: Vec::new(),
        uptime_ms: 8_040_000,
        config_file: None,
        interfaces: vec![InterfaceStatus {
            name: "eth1".to_owned(),
            attachment: "tc".to_owned(),
            reason: String::new(),
            preceded_by: Vec::new(),
        }],
        services: core.snapshot(now).services,
        kernel_selections: Vec::new(),
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
    let mut text = String::new();
    for row in buffer(app, width, height).content.chunks(width.into()) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn buffer(app: &mut App, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, app)).unwrap();
    terminal.backend().buffer().clone()
}

fn assert_screen(name: &str, app: &mut App, width: u16, height: u16) {
    let screen = screen(app, width, height);
    assert_file(&format!("src/cli/top/screens/{name}.txt"), &screen);
}

fn assert_file(name: &str, now: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("MEMLB_NEW_SCREENS").is_some() {
        std::fs::write(&file, now).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    assert!(
        now == expected,
        "{name} is now:\n{now}\nand was:\n{expected}"
    );
}
