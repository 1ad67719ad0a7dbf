//! Random histories, on which the programs and the model must agree packet by packet, and flow by
//! flow: both families and both protocols in each, through workers of every mode.

use std::{
    collections::BTreeSet,
    ops::{Range, RangeInclusive},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use lb_common::{
    maps::{mode, progress, state},
    verdict::Verdict,
};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestError, TestRunner},
};

use crate::{
    bench::{Bench, ESTABLISHED_IDLE, Edge, HALF_OPEN_IDLE, cases, next_tick, run_at},
    call::{CLIENT_START, Call, WORKER_START},
    frame::{ACK, FIN, Family, PSH, RST, SYN},
    lan::{CLIENT, FALLBACK, MANAGER, OTHER_CLIENT, Server, Station, WORKER1, WORKER2},
    message::{Message, Problem},
    model::{Client, Connection, Expected, Model, ModelServer, Reach},
    outcome::{Action, Counted, Outcome},
    segment::{Protocol, Segment},
    tables::{Key, Opening},
};

/// More than clients of one family, so that they meet, but no handshake is in the way of all others.
const PORTS: RangeInclusive<u16> = 5_000..=5_007;

const CLIENTS: [(Family, Protocol, Station, u16); 10] = [
    (Family::V4, Protocol::Tcp, CLIENT, 40_000),
    (Family::V4, Protocol::Tcp, CLIENT, 40_001),
    (Family::V4, Protocol::Tcp, OTHER_CLIENT, 5_000),
    (Family::V4, Protocol::Udp, CLIENT, 40_000),
    (Family::V4, Protocol::Udp, OTHER_CLIENT, 50_000),
    (Family::V6, Protocol::Tcp, CLIENT, 40_000),
    (Family::V6, Protocol::Tcp, OTHER_CLIENT, 40_000),
    (Family::V6, Protocol::Tcp, OTHER_CLIENT, 5_000),
    (Family::V6, Protocol::Udp, CLIENT, 40_000),
    (Family::V6, Protocol::Udp, CLIENT, 5_001),
];

/// So much may pass on the clock until the programs are told again what time the model has: far less
/// than what makes a difference to them.
const MOST_REAL_TIME: Duration = Duration::from_millis(50);

/// So much may pass on the clock during an event: the programs' timeouts end half seconds, and the model's times are
/// whole seconds.
const MARGIN: Duration = Duration::from_millis(400);

/// How often a history begins again because this machine paused during one of its events.
const PAUSES: usize = 5;

/// The bench's own family; the other one's servers are those abroad.
const HOME: Family = Family::V4;

const WORKERS: [Server; 2] = [WORKER1, WORKER2];
const SERVERS: [Server; 3] = [WORKER1, WORKER2, FALLBACK];

#[derive(Clone, Debug)]
struct History {
    /// How the workers, at home and abroad, are reached.
    reached: [Reach; 4],
    events: Vec<Event>,
}

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
    /// A worker sends to a port, whichever connection holds it.
    Stray {
        worker: Server,
        protocol: Protocol,
        port: u16,
        flags: u8,
    },
    /// A router tells of a packet to this client.
    ClientsSideComplains {
        client: Client,
        problem: Problem,
        quotes_the_least: bool,
    },
    /// A server tells of a packet of some connection.
    WorkersSideComplains {
        connection: Index,
        problem: Problem,
        quotes_the_least: bool,
    },
    /// A worker sends an ICMP error about a packet from a port, whichever connection holds it.
    StrayComplaint {
        worker: Server,
        protocol: Protocol,
        port: u16,
    },
    Wait(Duration),
    Select(Family, u32),
    State(Server, u8),
}

#[test]
fn the_programs_match_the_model() {
    for edge in [Edge::Tc, Edge::Xdp] {
        run_at(edge, HOME, |bench| {
            bench.nat_ports(PORTS);
            let mut runner = TestRunner::new(ProptestConfig {
                cases: cases(128),
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let bench = std::cell::RefCell::new(bench);
            let agreed = runner.run(&history(), |history| {
                agree_in_time(&mut bench.borrow_mut(), &history);
                Ok(())
            });
            if let Err(TestError::Fail(reason, history)) = agreed {
                panic!("{reason}\nafter {history:#?}");
            }
            agreed.unwrap();
        });
    }
}

fn history() -> impl Strategy<Value = History> {
    let reached = prop::array::uniform4(prop_oneof![
        2 => Just(Reach::Translated),
        1 => Just(Reach::Directly),
        1 => Just(Reach::Routed),
    ]);
    let events = prop::collection::vec(event(), 1..120);
    (reached, events).prop_map(|(reached, events)| History { reached, events })
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
    let client = || 0..CLIENTS.len();
    let request =
        (client(), client_flags, prop::bool::weighted(0.1)).prop_map(|(client, flags, guesses)| {
            Event::Request {
                client,
                flags,
                guesses,
            }
        });
    let answer = (any::<Index>(), server_flags())
        .prop_map(|(connection, flags)| Event::Answer { connection, flags });
    let worker = || prop::sample::select(at_home_and_abroad(&WORKERS));
    let protocol = || prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let stray = (worker(), protocol(), PORTS, server_flags()).prop_map(
        |(worker, protocol, port, flags)| Event::Stray {
            worker,
            protocol,
            port,
            flags,
        },
    );
    let problem = || prop::sample::select(Problem::ALL.to_vec());
    let clients_side =
        (client(), problem(), any::<bool>()).prop_map(|(client, problem, quotes_the_least)| {
            Event::ClientsSideComplains {
                client,
                problem,
                quotes_the_least,
            }
        });
    let workers_side = (any::<Index>(), problem(), any::<bool>()).prop_map(
        |(connection, problem, quotes_the_least)| Event::WorkersSideComplains {
            connection,
            problem,
            quotes_the_least,
        },
    );
    let stray_complaint =
        (worker(), protocol(), PORTS).prop_map(|(worker, protocol, port)| Event::StrayComplaint {
            worker,
            protocol,
            port,
        });
    let wait = prop::sample::select(vec![1, 2, 3, 5, 9, 61])
        .prop_map(|seconds| Event::Wait(Duration::from_secs(seconds)));
    let family = prop::sample::select(Family::BOTH.to_vec());
    let backend = prop::sample::select(vec![0, 1, 2, 3, 7]);
    let select = (family, backend).prop_map(|(family, id)| {
        let is_abroad = family != HOME && (1..=FALLBACK.id).contains(&id);
        Event::Select(family, if is_abroad { id + FALLBACK.id } else { id })
    });
    let server = prop::sample::select(at_home_and_abroad(&SERVERS));
    let state = prop_oneof![3 => Just(1_u8), 1 => 0..5_u8];
    prop_oneof![
        24 => request,
        16 => answer,
        2 => stray,
        3 => clients_side,
        3 => workers_side,
        1 => stray_complaint,
        4 => wait,
        3 => select,
        3 => (server, state).prop_map(|(server, state)| Event::State(server, state)),
    ]
}

fn at_home_and_abroad(servers: &[Server]) -> Vec<Server> {
    let abroad = servers.iter().map(|server| server.abroad());
    servers.iter().copied().chain(abroad).collect()
}

/// A disagreement proves nothing if the machine paused for so long that a timeout ended for the programs alone.
fn agree_in_time(bench: &mut Bench, history: &History) {
    for _ in 0..PAUSES {
        let mut aged = Instant::now();
        let agreed = catch_unwind(AssertUnwindSafe(|| agree_on(bench, history, &mut aged)));
        match agreed {
            Ok(()) => return,
            Err(_) if aged.elapsed() > MARGIN => println!("a pause of {:?}", aged.elapsed()),
            Err(disagreement) => resume_unwind(disagreement),
        }
    }
    panic!("this machine paused in each of {PAUSES} attempts");
}

/// `aged` is when the tables last had the times of the model.
fn agree_on(bench: &mut Bench, history: &History, aged: &mut Instant) {
    let mut model = begins(bench, history.reached);
    // The programs tell the handshakes of a client apart by their times.
    let mut ticks = [0; CLIENTS.len()];
    for event in &history.events {
        if let Some(client) = client_of(&model, event) {
            ticks[client] = next_tick(ticks[client]);
        }
        if aged.elapsed() > MOST_REAL_TIME {
            age_flows(bench, &model);
            *aged = Instant::now();
        }
        apply(bench, &mut model, event);
        assert_eq!(bench.keys(), keys(bench, &model));
        for server in at_home_and_abroad(&SERVERS) {
            assert_eq!(bench.active(server.id), model.open(server), "{event:?}");
        }
        let half_open = model.connections.iter().filter(|one| !one.established);
        let half_open: BTreeSet<_> = half_open
            .filter(|one| one.is_under_way(&model))
            .map(|one| keys_of(bench, one)[0])
            .collect();
        let present = bench.handshakes().into_iter();
        let is_acknowledged =
            |one: &Opening| one.progress != progress::NONE && !one.client.is_datagram();
        // Where a client's handshakes are depends on the secret of the table: an abandoned one may lie in
        // another place than the one that became a flow, until that place is needed.
        let established = model.connections.iter().filter(|one| one.established);
        let established: BTreeSet<_> = established.map(|one| keys_of(bench, one)[0]).collect();
        let is_abandoned =
            |one: &Opening| one.client.is_datagram() && established.contains(&one.client);
        let present = present.filter(|one| {
            let longest = match is_acknowledged(one) {
                true => ESTABLISHED_IDLE,
                false => HALF_OPEN_IDLE,
            };
            bench.age(one) <= longest && !is_abandoned(one)
        });
        assert_eq!(
            present.map(|one| one.client).collect::<BTreeSet<_>>(),
            half_open,
            "after {event:?}"
        );
    }
}

fn begins(bench: &mut Bench, reached: [Reach; 4]) -> Model {
    bench.reset();
    let clients = CLIENTS.map(|(family, protocol, ..)| (family, protocol));
    let mut servers = Vec::new();
    for server in at_home_and_abroad(&SERVERS) {
        let family = if server.id <= FALLBACK.id {
            HOME
        } else {
            Family::V6
        };
        let worker = at_home_and_abroad(&WORKERS)
            .iter()
            .position(|worker| *worker == server);
        let reach = match worker {
            None => Reach::Here,
            Some(worker) => reached[worker],
        };
        match reach {
            Reach::Directly => bench.backend(server.id, |backend| backend.mode = mode::DSR),
            Reach::Routed => bench.routes_to(server),
            Reach::Translated | Reach::Here => {}
        }
        servers.push(ModelServer {
            server,
            family,
            reach,
            state: state::UP,
        });
    }
    let selected = [(HOME, WORKER1.id), (Family::V6, WORKER1.abroad().id)];
    bench.retries_refused(&WORKERS);
    let workers = at_home_and_abroad(&WORKERS);
    Model::new(PORTS, clients.into(), servers, selected.into(), workers)
}

fn apply(bench: &mut Bench, model: &mut Model, event: &Event) {
    match *event {
        Event::Request {
            client,
            flags,
            guesses,
        } => request(bench, model, client, flags, guesses),
        Event::Answer { connection, flags } => {
            let Some(one) = any_of(model, &connection) else {
                return;
            };
            let mut asked = call(bench, one.client);
            match (one.reach, one.port) {
                (Reach::Translated, Some(port)) => {
                    asked.nat_port = port;
                    reply(bench, model, &asked, one.server, flags, None);
                }
                (Reach::Routed, _) => {
                    let asked = asked.routed();
                    reply(bench, model, &asked, one.server, flags, Some(one.client));
                }
                (Reach::Here, _) => own_reply(bench, model, one.client, one.server, flags),
                // Never comes by here.
                _ => {}
            }
        }
        Event::Stray {
            worker,
            protocol,
            port,
            flags,
        } => {
            let anybody = caller_of(bench, model, worker, protocol, port);
            reply(bench, model, &anybody, worker, flags, None);
        }
        Event::ClientsSideComplains {
            client,
            problem,
            quotes_the_least,
        } => clients_side_complains(bench, model, client, problem, quotes_the_least),
        Event::WorkersSideComplains {
            connection,
            problem,
            quotes_the_least,
        } => {
            if let Some(one) = any_of(model, &connection)
                && let Some((call, seen)) = seen_by_worker(bench, &one)
            {
                let about = call.request(PSH | ACK).payload(*b"sixteen and more");
                let mut message = call.worker_complains(one.server, problem, &about);
                if quotes_the_least {
                    message = message.quotes_the_least();
                }
                workers_side_complains(bench, model, &call, one.server, &message, seen);
            }
        }
        Event::StrayComplaint {
            worker,
            protocol,
            port,
        } => {
            let anybody = caller_of(bench, model, worker, protocol, port);
            let about = anybody.request(ACK);
            let message = anybody.worker_complains(worker, Problem::HostUnreachable, &about);
            workers_side_complains(bench, model, &anybody, worker, &message, None);
        }
        Event::Wait(time) => {
            model.wait(time);
            age_flows(bench, model);
        }
        Event::Select(family, id) => {
            model.select(family, id);
            if family == HOME {
                bench.select(id);
            } else {
                bench.select_abroad(id);
            }
        }
        Event::State(server, state) => {
            model.state(server, state);
            bench.state(server.id, state);
        }
    }
}

/// Returns the client that a handshake may begin for.
fn client_of(model: &Model, event: &Event) -> Option<Client> {
    match *event {
        Event::Request { client, .. } => Some(client),
        Event::Answer { connection, .. } => any_of(model, &connection).map(|one| one.client),
        Event::Stray {
            worker,
            protocol,
            port,
            ..
        } => {
            let mut connections = model.connections.iter();
            let found = connections.find(|one| one.holds(worker, protocol, port));
            found.map(|one| one.client)
        }
        _ => None,
    }
}

fn any_of(model: &Model, index: &Index) -> Option<Connection> {
    (!model.connections.is_empty()).then(|| index.get(&model.connections).clone())
}

fn request(bench: &Bench, model: &mut Model, client: Client, flags: u8, guesses: bool) {
    let guess = if guesses { 1 << 30 } else { 0 };
    let sequence = match flags & SYN {
        0 => CLIENT_START.wrapping_add(1 + guess),
        _ => CLIENT_START,
    };
    let mut call = call(bench, client);
    let flags = match call.protocol {
        Protocol::Tcp => flags,
        Protocol::Udp => 0,
    };
    let advance = if flags & PSH == 0 { 0 } else { 100 };
    let acknowledgement = WORKER_START.wrapping_add(1 + guess + advance);
    let segment = call.request(flags).numbers(sequence, acknowledgement);
    let expected = model.request(client, flags, !guesses, advance != 0);
    let outcome = bench.receives(&segment);
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Goes(server, port) => {
            call.nat_port = port.unwrap_or(0);
            goes_to(outcome, model, &call, server, &segment, 0);
        }
        Expected::Opens {
            server,
            ports,
            retries,
        } => {
            let port = (!ports.is_empty()).then(|| outcome.nat_port());
            if let Some(port) = port {
                assert!(ports.contains(&port), "{port} is not one of {ports:?}");
                call.nat_port = port;
            }
            goes_to(outcome, model, &call, server, &segment, 1);
            if port.is_some() {
                let live = bench.keys();
                model.gave_way(server, call.protocol, |one| {
                    keys_of(bench, one).iter().all(|key| !live.contains(key))
                });
            }
            model.opened(client, server, port, retries);
        }
        Expected::Comes(..) | Expected::Retries { .. } => {
            unreachable!("a request goes to no client")
        }
    }
}

fn goes_to(
    outcome: Outcome,
    model: &Model,
    call: &Call,
    server: Server,
    segment: &Segment,
    connections: u64,
) {
    let reach = model.server(server).reach;
    outcome.was_sent_to(server, connections);
    match reach {
        Reach::Here => {
            outcome.is(Action::Pass);
            outcome.leaves_as(&segment.clone().to(call.at(server)));
        }
        Reach::Translated => {
            outcome.is(outcome.forwarding());
            outcome.leaves_as(&call.at_worker(server, segment));
        }
        Reach::Routed => {
            outcome.is(outcome.forwarding());
            outcome.leaves_as(&call.clone().routed().at_worker(server, segment));
        }
        Reach::Directly => {
            outcome.is(outcome.forwarding());
            outcome.leaves_as(&call.at_dsr_worker(server, segment));
        }
    }
}

/// A worker answers to a port of the manager's, or to the client that it sees.
fn reply(
    bench: &Bench,
    model: &mut Model,
    asked: &Call,
    server: Server,
    flags: u8,
    seen: Option<Client>,
) {
    let flags = match asked.protocol {
        Protocol::Tcp => flags,
        Protocol::Udp => 0,
    };
    let segment = asked
        .reply(server, flags)
        .numbers(WORKER_START, CLIENT_START.wrapping_add(1));
    let is_deaf = waits_for_client(model, asked, server, seen);
    let is_refusal = model.is_refusal(flags, |one| match seen {
        Some(client) => one.is_routed(server, client),
        None => one.holds(server, asked.protocol, asked.nat_port),
    });
    let expected = match seen {
        Some(client) => model.routed_reply(server, client, flags),
        None => model.reply(server, asked.protocol, asked.nat_port, flags),
    };
    let mut outcome = bench.receives(&segment);
    if is_refusal && bench.edge == Edge::Xdp {
        outcome.passes(Verdict::HandedOver);
        outcome = bench.behind_xdp(&segment);
    }
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Retries {
            client,
            server,
            ports,
        } => is_sent_again(bench, model, &outcome, client, server, &ports),
        Expected::Comes(client, server) => {
            let restored = call(bench, client).at_client(&segment).frame();
            reaches(outcome, server, restored, is_deaf);
        }
        Expected::Goes(..) | Expected::Opens { .. } => {
            unreachable!("a reply goes to no server: {}", Verdict::ToBackend.name())
        }
    }
}

/// A client's SYN leaves in place of the RST that refused it.
fn is_sent_again(
    bench: &Bench,
    model: &mut Model,
    outcome: &Outcome,
    client: Client,
    server: Server,
    ports: &BTreeSet<u16>,
) {
    outcome.is(Action::Redirect);
    let [
        Counted::Verdict {
            verdict: Verdict::Retried,
            packets: 1,
            ..
        },
        Counted::ToBackend {
            id,
            connections: 1,
            packets: 1,
            bytes,
        },
    ] = outcome.counted[..]
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((id, bytes), (server.id, outcome.left.len() as u64));
    let port = (!ports.is_empty()).then(|| outcome.nat_port());
    if let Some(port) = port {
        assert!(ports.contains(&port), "{port} is not one of {ports:?}");
        let live = bench.keys();
        model.gave_way(server, Protocol::Tcp, |one| {
            keys_of(bench, one).iter().all(|key| !live.contains(key))
        });
    }
    model.retried(client, server, port);
}

/// The manager's own server answers.
fn own_reply(bench: &Bench, model: &mut Model, client: Client, server: Server, flags: u8) {
    let asked = call(bench, client);
    let flags = match asked.protocol {
        Protocol::Tcp => flags,
        Protocol::Udp => 0,
    };
    let segment = asked
        .segment(asked.at(server), asked.client_address(), flags)
        .macs(MANAGER.mac, asked.client.mac)
        .numbers(WORKER_START, CLIENT_START.wrapping_add(1));
    let expected = model.own_reply(client, flags);
    let outcome = bench.sends(&segment);
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Retries {
            client,
            server,
            ports,
        } => is_sent_again(bench, model, &outcome, client, server, &ports),
        _ => {
            outcome.is(Action::Pass);
            outcome.was_sent_by(server);
            let mut restored = segment;
            restored.source = asked.service();
            outcome.leaves_as(&restored);
        }
    }
}

fn clients_side_complains(
    bench: &Bench,
    model: &Model,
    client: Client,
    problem: Problem,
    quotes_the_least: bool,
) {
    let mut call = call(bench, client);
    let about = call
        .segment(call.service(), call.client_address(), PSH | ACK)
        .payload(*b"sixteen and more");
    // A narrow path is what tests of single packets are about.
    let problem = match problem {
        Problem::TooBig(_) => Problem::TimeExceeded,
        problem => problem,
    };
    let mut message = call.complains(problem, &about);
    if quotes_the_least {
        message = message.quotes_the_least();
    }
    let outcome = bench.receives(&message);
    match model.clients_side_complains(client) {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Goes(server, port) => {
            call.nat_port = port.unwrap_or(0);
            outcome.was_sent_to(server, 0);
            match model.server(server).reach {
                Reach::Here => {
                    outcome.is(Action::Pass);
                    outcome.leaves_as(&call.complaint_here(server, &message));
                }
                Reach::Translated => {
                    outcome.is(outcome.forwarding());
                    outcome.leaves_as(&call.complaint_at_worker(server, &message));
                }
                Reach::Routed => {
                    outcome.is(outcome.forwarding());
                    outcome.leaves_as(&call.routed().complaint_at_worker(server, &message));
                }
                Reach::Directly => {
                    outcome.is(outcome.forwarding());
                    outcome.leaves_as(&call.complaint_at_dsr_worker(server, &message));
                }
            }
        }
        expected => unreachable!("an error about an answer goes to a server: {expected:?}"),
    }
}

fn workers_side_complains(
    bench: &Bench,
    model: &Model,
    asked: &Call,
    server: Server,
    message: &Message,
    seen: Option<Client>,
) {
    let is_deaf = waits_for_client(model, asked, server, seen);
    let outcome = bench.receives(message);
    let expected = match seen {
        Some(client) => model.routed_side_complains(server, client),
        None => model.workers_side_complains(server, asked.protocol, asked.nat_port),
    };
    match expected {
        Expected::Passes(verdict) => outcome.passes(verdict),
        Expected::Comes(client, server) => {
            let translated = call(bench, client).complaint_at_client(message);
            reaches(outcome, server, (&translated).into(), is_deaf);
        }
        expected => unreachable!("an error about a request goes to a client: {expected:?}"),
    }
}

/// Whether the client of the connection that a worker sees has been silent for long.
fn waits_for_client(model: &Model, asked: &Call, server: Server, seen: Option<Client>) -> bool {
    model.waits_for_client(|one| match seen {
        Some(client) => one.is_routed(server, client),
        None => one.holds(server, asked.protocol, asked.nat_port),
    })
}

/// A server's packet goes to its client: to the link address of the client's last packet or, if the client is
/// deaf, perhaps by the manager's route, whose link addresses the kernel writes. XDP leaves that to TC.
fn reaches(outcome: Outcome, server: Server, expected: Vec<u8>, is_deaf: bool) {
    const LINK_ADDRESSES: Range<usize> = 0..12;
    let mut by_route = expected.clone();
    by_route[LINK_ADDRESSES].copy_from_slice(&outcome.sent[LINK_ADDRESSES]);
    if is_deaf && outcome.action == Action::Pass {
        outcome.passes(Verdict::HandedOver);
    } else if is_deaf && outcome.left == by_route {
        outcome.comes_from(server, by_route);
    } else {
        outcome.comes_from(server, expected);
    }
}

/// Makes the flows as old as the model's connections.
fn age_flows(bench: &mut Bench, model: &Model) {
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
    call.nat_port = connection.port.unwrap_or(0);
    let server = connection.server;
    let reply = match connection.reach {
        Reach::Translated => call.reply_key(server),
        Reach::Routed => call.clone().routed().reply_key(server),
        Reach::Here => call.key(call.at(server), call.client_address()),
        Reach::Directly => call.request_key().reversed(),
    };
    [call.request_key(), reply]
}

fn call(bench: &Bench, client: Client) -> Call {
    let (family, protocol, station, port) = CLIENTS[client];
    let call = bench.call(station, port).over(family);
    match protocol {
        Protocol::Tcp => call,
        Protocol::Udp => call.of_datagrams(),
    }
}

/// A connection as its worker sees it, and the client's address if the worker sees that; nothing where what
/// the worker says of it does not come by here.
fn seen_by_worker(bench: &Bench, one: &Connection) -> Option<(Call, Option<Client>)> {
    let mut call = call(bench, one.client);
    if one.reach == Reach::Routed {
        return Some((call.routed(), Some(one.client)));
    }
    call.nat_port = one.port?;
    Some((call, None))
}

/// Some client's call that could have the manager's `port` towards `worker`.
fn caller_of(bench: &Bench, model: &Model, worker: Server, protocol: Protocol, port: u16) -> Call {
    let family = model.server(worker).family;
    let client = CLIENTS
        .iter()
        .position(|(of, speaks, ..)| (*of, *speaks) == (family, protocol))
        .unwrap();
    let mut call = call(bench, client);
    call.nat_port = port;
    call
}
