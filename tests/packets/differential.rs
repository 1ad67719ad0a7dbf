//! Random histories, on which the programs and the model must agree packet by packet, and flow by
//! flow.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use lb_common::verdict::Verdict;
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestError, TestRunner},
};

use crate::{
    bench::{Bench, HALF_OPEN_IDLE, at_both_edges},
    call::{CLIENT_START, Call, WORKER_START},
    frame::{ACK, FIN, PSH, RST, SYN},
    lan::{self, CLIENT, FALLBACK, MANAGER, OTHER_CLIENT, Server, Station, WORKER1, WORKER2},
    model::{Client, Connection, Expected, Model},
    outcome::{Action, Outcome},
    segment::Segment,
    tables::Key,
};

/// As many as clients, so that they meet, but no handshake is in the way of all others.
const PORTS: RangeInclusive<u16> = 5_000..=5_004;

const CLIENTS: [(Station, u16); 5] = [
    (CLIENT, 40_000),
    (CLIENT, 40_001),
    (OTHER_CLIENT, 40_000),
    (OTHER_CLIENT, 50_000),
    (OTHER_CLIENT, 5_000),
];

#[derive(Clone, Debug)]
enum Event {
    Request {
        client: Client,
        flags: u8,
        guesses: bool,
    },
    /// The server of some connection answers.
    Answer {
        connection: Index,
        flags: u8,
    },
    /// A worker sends to a port, whoever holds it.
    Stray {
        worker: Server,
        port: u16,
        flags: u8,
    },
    Wait(Duration),
    Select(u32),
    State(Server, u8),
}

#[test]
fn the_programs_do_as_the_model_does() {
    at_both_edges(|bench| {
        bench.nat_ports(PORTS);
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 128,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let bench = std::cell::RefCell::new(bench);
        let histories = prop::collection::vec(event(), 1..80);
        let agreed = runner.run(&histories, |history| {
            agree_on(&mut bench.borrow_mut(), &history);
            Ok(())
        });
        if let Err(TestError::Fail(reason, history)) = agreed {
            panic!("{reason}\nafter {history:#?}");
        }
        agreed.unwrap();
    });
}

fn event() -> impl Strategy<Value = Event> {
    let client_flags = prop_oneof![
        5 => Just(SYN),
        6 => Just(ACK),
        2 => Just(PSH | ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => any::<u8>(),
    ];
    let server_flags = || {
        prop_oneof![
            5 => Just(SYN | ACK),
            3 => Just(ACK),
            2 => Just(FIN | ACK),
            1 => Just(RST | ACK),
            1 => any::<u8>(),
        ]
    };
    let request = (0..CLIENTS.len(), client_flags, prop::bool::weighted(0.1)).prop_map(
        |(client, flags, guesses)| Event::Request {
            client,
            flags,
            guesses,
        },
    );
    let answer = (any::<Index>(), server_flags())
        .prop_map(|(connection, flags)| Event::Answer { connection, flags });
    let worker = || prop::sample::select(vec![WORKER1, WORKER2]);
    let stray = (worker(), PORTS, server_flags()).prop_map(|(worker, port, flags)| Event::Stray {
        worker,
        port,
        flags,
    });
    let wait = prop::sample::select(vec![1, 2, 3, 5, 9])
        .prop_map(|seconds| Event::Wait(Duration::from_secs(seconds)));
    let server = prop::sample::select(vec![WORKER1, WORKER2, FALLBACK]);
    let state = prop_oneof![3 => Just(1_u8), 1 => 0..5_u8];
    prop_oneof![
        20 => request,
        14 => answer,
        2 => stray,
        4 => wait,
        2 => prop::sample::select(vec![0, 1, 2, 3, 7]).prop_map(Event::Select),
        2 => (server, state).prop_map(|(server, state)| Event::State(server, state)),
    ]
}

fn agree_on(bench: &mut Bench, history: &[Event]) {
    bench.begins_anew();
    let mut model = Model::new(PORTS);
    for event in history {
        match *event {
            Event::Request {
                client,
                flags,
                guesses,
            } => request(bench, &mut model, client, flags, guesses),
            Event::Answer { connection, flags } => {
                if !model.connections.is_empty() {
                    let connection = connection.get(&model.connections);
                    let (server, port) = (connection.server, connection.port);
                    let client = connection.client;
                    reply(bench, &mut model, client, server, port, flags);
                }
            }
            Event::Stray {
                worker,
                port,
                flags,
            } => reply(bench, &mut model, 0, worker, port, flags),
            Event::Wait(time) => {
                model.wait(time);
                takes_its_time(bench, &model);
            }
            Event::Select(id) => {
                model.selected = id;
                bench.select(id);
            }
            Event::State(server, state) => {
                model.state(server, state);
                bench.state(server.id, state);
            }
        }
        assert_eq!(bench.keys(), keys(bench, &model));
        for server in [WORKER1, WORKER2, FALLBACK] {
            assert_eq!(bench.active(server.id), model.open(server), "{event:?}");
        }
        let half_open = model.connections.iter().filter(|one| !one.established);
        let half_open: BTreeSet<_> = half_open
            .filter(|one| one.is_under_way(&model))
            .map(|one| keys_of(bench, one)[0])
            .collect();
        let present = bench.handshakes().into_iter();
        let present = present.filter(|one| bench.age(one) <= HALF_OPEN_IDLE);
        assert_eq!(
            present.map(|one| one.client).collect::<BTreeSet<_>>(),
            half_open
        );
    }
}

fn request(bench: &Bench, model: &mut Model, client: Client, flags: u8, guesses: bool) {
    let acknowledges = if guesses {
        WORKER_START.wrapping_add(1 << 30)
    } else {
        WORKER_START.wrapping_add(1)
    };
    let mut call = call(bench, client);
    let segment = call.request(flags).numbers(CLIENT_START, acknowledges);
    let expected = model.request(client, flags, acknowledges);
    let outcome = bench.receives(&segment);
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Goes(server, port) => {
            call.nat_port = port;
            goes_to(outcome, &call, server, &segment, 0);
        }
        Expected::Opens(server, ports) => {
            let port = if server == FALLBACK {
                call.port
            } else {
                let port = outcome.nat_port();
                assert!(ports.contains(&port), "{port} is not one of {ports:?}");
                port
            };
            call.nat_port = port;
            goes_to(outcome, &call, server, &segment, 1);
            model.opened(client, server, port);
        }
        Expected::Comes(..) => unreachable!("a request goes to no client"),
    }
}

fn goes_to(outcome: Outcome, call: &Call, server: Server, segment: &Segment, connections: u64) {
    if server == FALLBACK {
        outcome.is(Action::Pass);
        outcome.was_sent_to(server, connections);
        outcome.leaves_as(&segment.clone().to(call.at(server)));
    } else if connections == 1 {
        outcome.opens(server, &call.at_worker(server, segment));
    } else {
        outcome.goes_to(server, &call.at_worker(server, segment));
    }
}

fn reply(bench: &Bench, model: &mut Model, client: Client, server: Server, port: u16, flags: u8) {
    let mut asked = call(bench, client);
    asked.nat_port = port;
    let mut segment = asked
        .reply(server, flags)
        .numbers(WORKER_START, CLIENT_START.wrapping_add(1));
    if server == FALLBACK {
        segment = segment
            .to(asked.client_address())
            .macs(MANAGER.mac, asked.client.mac);
    }
    let (expected, outcome) = if server == FALLBACK {
        let expected = model.own_reply(client, flags, WORKER_START);
        (expected, bench.sends(&segment))
    } else {
        let expected = model.reply(server, port, flags, WORKER_START);
        (expected, bench.receives(&segment))
    };
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Comes(_, FALLBACK) => {
            outcome.is(Action::Pass);
            outcome.was_sent_by(FALLBACK);
            segment.source = lan::service(bench.family);
            outcome.leaves_as(&segment);
        }
        Expected::Comes(client, server) => {
            let restored = call(bench, client).at_client(&segment);
            outcome.comes_from(server, &restored);
        }
        Expected::Goes(..) | Expected::Opens(..) => {
            unreachable!("a reply goes to no server: {}", Verdict::ToBackend.name())
        }
    }
}

/// Makes the flows as old as the model's connections.
fn takes_its_time(bench: &mut Bench, model: &Model) {
    for connection in &model.connections {
        let keys = keys_of(bench, connection);
        if !connection.established {
            bench.waited(keys[0], model.silence(connection));
            continue;
        }
        for (key, silence) in keys.into_iter().zip(model.silences(connection)) {
            bench.was_silent(key, silence);
        }
    }
}

fn keys(bench: &Bench, model: &Model) -> BTreeSet<Key> {
    model
        .connections
        .iter()
        .filter(|connection| connection.established)
        .flat_map(|connection| keys_of(bench, connection))
        .collect()
}

fn keys_of(bench: &Bench, connection: &Connection) -> [Key; 2] {
    let mut call = call(bench, connection.client);
    call.nat_port = connection.port;
    if connection.server == FALLBACK {
        let reply = call.key(call.at(FALLBACK), call.client_address());
        return [call.request_key(), reply];
    }
    [call.request_key(), call.reply_key(connection.server)]
}

fn call(bench: &Bench, client: Client) -> Call {
    let (station, port) = CLIENTS[client];
    bench.call(station, port)
}
