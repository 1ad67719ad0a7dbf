//! A worker's DSR translator: packets to a service, answers of the worker's server, and other packets.

use std::{net::SocketAddr, panic::resume_unwind, thread};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun as _},
};
use lb_common::{
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    maps::{Counter, ServiceKey, Translation, dsr_name as name, port_bit, port_word},
    verdict::Verdict,
};
use memlb::datapath::dsr::OBJECT;
use memlb_tests::require_root;
use nix::sched::{CloneFlags, unshare};

use crate::{
    datapath::{FrameContext, socket_buffer, total},
    entries,
    frame::{ACK, FIN, Family, Mac, RST, SYN, arp_request},
    lan::{self, CLIENT, ETH1, MANAGER, OTHER_CLIENT, ROUTER, WORKER1, service},
    message::{Message, Problem},
    segment::{Protocol, Segment},
};

/// The link address of the test's own interface, which is the worker's here.
const HERE: Mac = MANAGER.mac;
const CLIENT_PORT: u16 = 40_000;

/// The next program comes.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;

#[test]
fn a_request_reaches_the_server_and_the_answer_comes_from_the_service() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_a_worker(|worker| {
            let (request, answer) = (worker.request(protocol, SYN), worker.reply(protocol));
            worker.passes_in(&request);
            worker.passes_out(&answer);
            let request = worker
                .request(protocol, ACK)
                .payload("GET / HTTP/1.1\r\n\r\n");
            worker.passes_in(&request);
            let answer = answer.payload(vec![0x5a; 1_400]);
            worker.passes_out(&answer);
        });
    }
}

#[test]
fn a_connection_that_began_before_the_dsr_translator_goes_on() {
    on_a_worker(|worker| {
        let request = worker.request(Protocol::Tcp, ACK).payload("more");
        worker.passes_in(&request);
        let answer = worker.reply(Protocol::Tcp);
        worker.passes_out(&answer);
    });
}

#[test]
fn a_coalesced_packet_is_translated_as_one() {
    on_a_worker(|worker| {
        let request = worker.request(Protocol::Tcp, SYN);
        worker.passes_in(&request);
        let answer = worker.reply(Protocol::Tcp).payload(vec![7; 2_800]);
        let mut context = FrameContext::received_on(ETH1);
        context.gso = Some((1_000, 3));
        let sent = worker.run("memlb_dsr_out", &answer, context);
        sent.becomes(&worker.at_client(&answer));
    });
}

#[test]
fn resets_by_the_workers_stack_come_from_the_service() {
    on_a_worker(|worker| {
        let request = worker.request(Protocol::Tcp, SYN);
        worker.passes_in(&request);
        let reset = worker.reply(Protocol::Tcp).flags(RST | ACK);
        worker.passes_out(&reset);
    });
}

#[test]
fn connections_to_the_servers_own_port_are_not_translated() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_a_worker(|worker| {
            for flags in [SYN, ACK, FIN | ACK] {
                let direct = worker.at_server(&worker.request(protocol, flags));
                worker.receives(&direct).is_untouched(Verdict::NotOurs);
            }
            let answer = worker.reply(protocol);
            worker.sends(&answer).is_untouched(Verdict::NotOurs);
        });
    }
}

#[test]
fn the_newest_destination_of_a_client_port_applies() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_a_worker(|worker| {
            let request = worker.request(protocol, SYN);
            let direct = worker.at_server(&request);
            let answer = worker.reply(protocol);
            for _ in 0..2 {
                worker.receives(&request).becomes(&direct);
                // Which makes it a known one.
                let more = worker.request(protocol, ACK);
                worker.passes_in(&more);
                worker.passes_out(&answer);
                worker.receives(&direct).is_untouched(Verdict::NotOurs);
                worker.sends(&answer).is_untouched(Verdict::NotOurs);
            }
        });
    }
}

#[test]
fn another_clients_direct_connection_changes_nothing() {
    on_a_worker(|worker| {
        let request = worker.request(Protocol::Tcp, SYN);
        worker.passes_in(&request);
        let mut other = worker.at_server(&request);
        other.source = OTHER_CLIENT.at(worker.family, CLIENT_PORT);
        worker.receives(&other).is_untouched(Verdict::NotOurs);
        let answer = worker.reply(Protocol::Tcp);
        worker.passes_out(&answer);
    });
}

#[test]
fn errors_on_the_way_to_the_client_reach_the_server() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_a_worker(|worker| {
            let request = worker.request(protocol, SYN);
            worker.passes_in(&request);
            let answer = worker.reply(protocol).payload(vec![1; 600]);
            let router = ROUTER.address(worker.family);
            for problem in Problem::ALL {
                let arrives = Message::new(router, problem, worker.at_client(&answer));
                let quoted = worker.quoted(&answer, &worker.at_client(&answer));
                let translated = Message::new(router, problem, quoted);
                let [arrives, translated] =
                    [arrives, translated].map(|it| it.macs(ROUTER.mac, HERE));
                worker.receives(&arrives).becomes(&translated);
                let least = [arrives, translated].map(Message::quotes_the_least);
                worker.receives(&least[0]).becomes(&least[1]);
            }
        });
    }
}

#[test]
fn errors_of_the_worker_come_from_the_service() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_a_worker(|worker| {
            let request = worker.request(protocol, SYN);
            worker.passes_in(&request);
            for problem in Problem::ALL {
                let own = WORKER1.station.address(worker.family);
                let sent = Message::new(own, problem, worker.at_server(&request));
                let quoted = worker.quoted(&request, &worker.at_server(&request));
                let shown = Message::new(service(worker.family).ip(), problem, quoted);
                let [sent, shown] = [sent, shown].map(|it| it.macs(HERE, CLIENT.mac));
                worker.sends(&sent).becomes(&shown);
            }
        });
    }
}

#[test]
fn errors_about_other_flows_are_not_translated() {
    on_a_worker(|worker| {
        let answer = worker.reply(Protocol::Tcp);
        let router = ROUTER.address(worker.family);
        let about = [worker.at_client(&answer), answer];
        for about in about {
            let message = Message::new(router, Problem::TooBig(1_280), about);
            let message = message.macs(ROUTER.mac, HERE);
            worker.receives(&message).is_untouched(Verdict::NotOurs);
        }
    });
}

#[test]
fn other_packets_are_not_translated() {
    on_a_worker(|worker| {
        let request = worker.request(Protocol::Tcp, SYN);
        let mut elsewhere = request.clone();
        elsewhere.destination.set_port(81);
        let group = request.clone().macs(CLIENT.mac, [0x01, 0, 0x5e, 0, 0, 1]);
        let overheard = request.clone().macs(CLIENT.mac, OTHER_CLIENT.mac);
        for (frame, verdict) in [
            (elsewhere.frame(), Verdict::NotOurs),
            (request.as_ping(), Verdict::OtherProtocol),
            (request.as_protocol(132), Verdict::OtherProtocol),
            (request.as_fragment(0, true), Verdict::Fragment),
            (request.as_fragment(64, false), Verdict::Fragment),
            (group.frame(), Verdict::NotForUs),
            (overheard.frame(), Verdict::NotForUs),
            (arp_request(HERE, CLIENT.v4, MANAGER.v4), Verdict::NotIp),
        ] {
            let context = FrameContext::received_on(ETH1);
            let outcome = worker.run("memlb_dsr_in", frame, context);
            outcome.is_untouched(verdict);
        }
        // A service is of one protocol.
        let other_protocol = Segment {
            destination: SocketAddr::new(request.destination.ip(), 53),
            ..request
        };
        worker
            .receives(&other_protocol)
            .is_untouched(Verdict::NotOurs);
        let data = worker.reply(Protocol::Tcp).flags(ACK);
        worker.sends(&data).is_untouched(Verdict::NotOurs);
        let datagram = worker.reply(Protocol::Udp);
        worker.sends(&datagram).is_untouched(Verdict::NotOurs);
    });
}

#[test]
fn the_answer_to_a_syn_whose_entry_was_evicted_does_not_leave() {
    on_a_worker(|worker| {
        let answer = worker.reply(Protocol::Tcp);
        worker.sends(&answer).is_dropped(Verdict::NoFlow);
        let direct = worker.at_server(&worker.request(Protocol::Tcp, SYN));
        worker.receives(&direct).is_untouched(Verdict::NotOurs);
        worker.sends(&answer).is_untouched(Verdict::NotOurs);
    });
}

#[test]
fn a_flood_of_new_clients_evicts_no_known_one() {
    on_a_worker(|worker| {
        for flags in [SYN, ACK] {
            let request = worker.request(Protocol::Tcp, flags);
            worker.passes_in(&request);
        }
        for number in 0..3 * lb_common::maps::MAX_NEW_DSR_CLIENTS {
            let mut syn = worker.request(Protocol::Tcp, SYN);
            let port = 1_024 + u16::try_from(number % 32_768).unwrap();
            let clients = [OTHER_CLIENT, ROUTER];
            syn.source = clients[number as usize / 32_768].at(worker.family, port);
            let (_, left) = worker.run_program(
                "memlb_dsr_in",
                &syn.frame(),
                FrameContext::received_on(ETH1),
            );
            assert_ne!(left, syn.frame());
        }
        let answer = worker.reply(Protocol::Tcp);
        worker.passes_out(&answer);
    });
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    on_a_worker(|worker| {
        if worker.family == Family::V6 {
            return; // It must have one there (RFC 8200, section 8.1).
        }
        let request = worker.request(Protocol::Udp, 0).checksum(0);
        worker.passes_in(&request);
        let answer = worker.reply(Protocol::Udp).checksum(0);
        worker.passes_out(&answer);
    });
}

/// A worker whose DSR translator translates the service's TCP port and a UDP port.
struct Worker {
    family: Family,
    ebpf: Ebpf,
    verdicts: PerCpuArray<MapData, Counter>,
}

/// Loads the programs, with maps of their own.
pub fn load() -> anyhow::Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    for program in ["memlb_dsr_in", "memlb_dsr_out"] {
        let program: &mut SchedClassifier = ebpf.program_mut(program).unwrap().try_into()?;
        program.load()?;
    }
    Ok(ebpf)
}

/// Tells `story` over both families, each time on a worker of its own.
fn on_a_worker(story: impl Fn(&Worker) + Sync) {
    for family in Family::BOTH {
        if !require_root() {
            return;
        }
        let told = thread::scope(|scope| {
            let teller = scope.spawn(|| story(&Worker::new(family).unwrap()));
            teller.join()
        });
        if let Err(panic) = told {
            eprintln!("… over {family:?}");
            resume_unwind(panic);
        }
    }
}

impl Worker {
    fn new(family: Family) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        lan::make_interfaces()?;
        let mut ebpf = load()?;
        let mut map = |name| ebpf.take_map(name).unwrap();
        let mut translations: HashMap<_, ServiceKey, Translation> =
            map(name::TRANSLATIONS).try_into()?;
        let mut ports: Array<_, u64> = map(name::PORTS).try_into()?;
        let verdicts = map(name::VERDICTS).try_into()?;
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let key = ServiceKey {
                address: lan::mapped(service(family).ip()),
                port: service_port(protocol).to_be_bytes(),
                protocol,
                reserved: 0,
            };
            let translation = Translation {
                address: lan::mapped(WORKER1.address(family).ip()),
                port: WORKER1.port.to_be_bytes(),
                reserved: [0; 6],
            };
            translations.insert(key, translation, 0)?;
            for (port, is_source) in [
                (key.port, false),
                (translation.port, false),
                (translation.port, true),
            ] {
                let index = port_word(protocol, port, is_source);
                let word = ports.get(&index, 0)? | port_bit(port);
                ports.set(index, word, 0)?;
            }
        }
        Ok(Self {
            family,
            ebpf,
            verdicts,
        })
    }

    /// A client's packet to the service, as the manager hands it on.
    fn request(&self, protocol: Protocol, flags: u8) -> Segment {
        let port = service_port(protocol.number());
        let service = MANAGER.at(self.family, port);
        let client = CLIENT.at(self.family, CLIENT_PORT);
        Segment::new(protocol, client, service, flags)
            .macs(MANAGER.mac, HERE)
            .numbers(1, 2)
    }

    /// The server's packet to that client.
    fn reply(&self, protocol: Protocol) -> Segment {
        let client = CLIENT.at(self.family, CLIENT_PORT);
        let server = WORKER1.address(self.family);
        Segment::new(protocol, server, client, SYN | ACK)
            .macs(HERE, CLIENT.mac)
            .numbers(2, 2)
    }

    fn at_server(&self, request: &Segment) -> Segment {
        request.clone().to(WORKER1.address(self.family))
    }

    fn at_client(&self, answer: &Segment) -> Segment {
        let port = service_port(answer.protocol.number());
        Segment {
            source: MANAGER.at(self.family, port),
            ..answer.clone()
        }
    }

    /// A packet as a translated message quotes it: the checksum of TCP, which few messages quote and no
    /// receiver checks, stays as it was.
    fn quoted(&self, packet: &Segment, before: &Segment) -> Segment {
        match packet.protocol {
            Protocol::Tcp => packet.clone().checksum(before.written_checksum()),
            Protocol::Udp => packet.clone(),
        }
    }

    fn receives(&self, frame: impl Into<Vec<u8>>) -> TranslatorOutcome {
        self.run("memlb_dsr_in", frame, FrameContext::received_on(ETH1))
    }

    /// Translates the request of the service to one of the server.
    fn passes_in(&self, request: &Segment) {
        self.receives(request).becomes(&self.at_server(request));
    }

    /// Translates the server's answer to one of the service.
    fn passes_out(&self, answer: &Segment) {
        self.sends(answer).becomes(&self.at_client(answer));
    }

    fn sends(&self, frame: impl Into<Vec<u8>>) -> TranslatorOutcome {
        self.run("memlb_dsr_out", frame, FrameContext::received_on(ETH1))
    }

    fn run(
        &self,
        program: &str,
        frame: impl Into<Vec<u8>>,
        context: FrameContext,
    ) -> TranslatorOutcome {
        let sent: Vec<u8> = frame.into();
        let before = self.counters();
        let (action, left) = self.run_program(program, &sent, context);
        let after = self.counters();
        let moved = Verdict::ALL.iter().zip(before.iter().zip(&after));
        let packets = context.gso.map_or(1, |(_, segments)| segments.into());
        let counted = moved
            .filter(|(_, (before, after))| before != after)
            .map(|(verdict, (before, after))| {
                assert_eq!(after.packets - before.packets, packets);
                assert_eq!(after.bytes - before.bytes, sent.len() as u64);
                *verdict
            })
            .collect();
        TranslatorOutcome {
            action,
            sent,
            left,
            counted,
        }
    }

    /// Runs the program, and returns its action and the frame as it left it.
    fn run_program(&self, program: &str, frame: &[u8], context: FrameContext) -> (u32, Vec<u8>) {
        let program: &SchedClassifier = self.ebpf.program(program).unwrap().try_into().unwrap();
        let mut left = vec![0; frame.len() + 256];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut left),
                ctx_in: Some(&socket_buffer(context)),
                ..TestRunOptions::new()
            })
            .unwrap();
        left.truncate(result.data_size_out as usize);
        (result.return_value, left)
    }

    fn counters(&self) -> Vec<Counter> {
        entries::sums(&self.verdicts, total)
    }
}

/// What became of one frame.
#[must_use = "an outcome that no test looks at proves nothing"]
struct TranslatorOutcome {
    action: u32,
    sent: Vec<u8>,
    left: Vec<u8>,
    counted: Vec<Verdict>,
}

impl TranslatorOutcome {
    /// It was translated to `expected`, and counted as such.
    #[track_caller]
    fn becomes(&self, expected: impl Into<Vec<u8>>) {
        assert!(
            matches!(self.counted[..], [Verdict::ToBackend | Verdict::ToClient]),
            "counted as {:?}",
            self.counted
        );
        assert_eq!(self.action, TC_ACT_UNSPEC);
        assert_eq!(hex(&self.left), hex(&expected.into()));
    }

    /// It went on as it was, counted once under `verdict`.
    #[track_caller]
    fn is_untouched(&self, verdict: Verdict) {
        assert_eq!(self.action, TC_ACT_UNSPEC);
        assert_eq!(self.counted, [verdict]);
        assert_eq!(hex(&self.left), hex(&self.sent));
    }

    #[track_caller]
    fn is_dropped(&self, verdict: Verdict) {
        assert_eq!(self.action, TC_ACT_SHOT);
        assert_eq!(self.counted, [verdict]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn service_port(protocol: u8) -> u16 {
    if protocol == PROTOCOL_UDP {
        53
    } else {
        lan::SERVICE_PORT
    }
}
