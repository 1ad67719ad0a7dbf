//! The DSR translator's decision over maps in memory.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::BTreeMap,
};

use lb_common::{
    address::{Address, V4},
    dsr::{ClientTable, DsrPacket, DsrTables, handle_reply, handle_request, is_open},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP, TcpFlags},
    maps::{DsrClient, FlowKey, ServiceKey, Translation},
    verdict::Verdict,
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const SERVICES: [(V4, u16); 2] = [([10, 0, 0, 1], 80), ([10, 0, 0, 2], 80)];
const SERVER: (V4, u16) = ([10, 0, 0, 101], 8081);
const CLIENT: (V4, u16) = ([10, 0, 0, 9], 40_000);

/// Both services are translated to the one server.
#[derive(Default)]
struct Maps {
    clients: RefCell<BTreeMap<(ClientTable, FlowKey), DsrClient>>,
    now: Cell<u32>,
    /// Of the one socket.
    socket_service: Cell<Option<ServiceKey>>,
    is_restored: Cell<bool>,
}

impl DsrTables for Maps {
    type Address = V4;
    type Entry<'a> = RefMut<'a, DsrClient>;

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn translation(&self, service: &ServiceKey) -> Option<Translation> {
        let is_ours = SERVICES.iter().any(|(address, port)| {
            address.mapped() == service.address && port.to_be_bytes() == service.port
        });
        is_ours.then(|| Translation {
            address: SERVER.0.mapped(),
            port: SERVER.1.to_be_bytes(),
            reserved: [0; 6],
        })
    }

    fn client(&self, table: ClientTable, reply_key: &FlowKey) -> Option<RefMut<'_, DsrClient>> {
        let key = (table, *reply_key);
        RefMut::filter_map(self.clients.borrow_mut(), |clients| clients.get_mut(&key)).ok()
    }

    fn insert_client(&self, table: ClientTable, reply_key: &FlowKey, client: &DsrClient) -> bool {
        self.clients
            .borrow_mut()
            .insert((table, *reply_key), *client);
        true
    }

    fn remove_client(&self, table: ClientTable, reply_key: &FlowKey) {
        self.clients.borrow_mut().remove(&(table, *reply_key));
    }

    fn socket_service(&self) -> Option<ServiceKey> {
        self.socket_service.get()
    }

    fn set_socket_service(&self, service: &ServiceKey) {
        self.socket_service.set(Some(*service));
    }

    fn socket_has_received_nothing(&self) -> bool {
        self.is_restored.get()
    }
}

impl Maps {
    fn receives(&self, to: (V4, u16), protocol: u8, flags: u8) -> (Verdict, FlowKey) {
        let mut packet = packet(CLIENT, to, protocol, flags);
        (handle_request(self, &mut packet), packet.translated)
    }

    fn sends(&self, protocol: u8, flags: u8) -> (Verdict, FlowKey) {
        let mut packet = packet(SERVER, CLIENT, protocol, flags);
        (handle_reply(self, &mut packet), packet.translated)
    }

    /// Whom the client takes the server for.
    fn shown(&self, protocol: u8) -> Option<V4> {
        let (verdict, translated) = self.sends(protocol, ACK);
        (verdict == Verdict::ToClient).then_some(translated.source)
    }

    fn tables(&self) -> Vec<ClientTable> {
        self.clients
            .borrow()
            .keys()
            .map(|(table, _)| *table)
            .collect()
    }

    fn is_open(&self) -> bool {
        let clients = self.clients.borrow();
        let mut known = clients
            .iter()
            .filter(|((table, _), _)| *table == ClientTable::Known);
        known.any(|((_, key), client)| is_open(key, client, self.now.get()))
    }
}

fn key((source, from): (V4, u16), (destination, to): (V4, u16), protocol: u8) -> FlowKey {
    FlowKey {
        source,
        destination,
        source_port: from.to_be_bytes(),
        destination_port: to.to_be_bytes(),
        protocol: protocol.into(),
    }
}

fn packet(from: (V4, u16), to: (V4, u16), protocol: u8, flags: u8) -> DsrPacket {
    let mut packet = DsrPacket::NONE;
    packet.key = key(from, to, protocol);
    if protocol == PROTOCOL_TCP {
        packet.flags = TcpFlags(flags);
    }
    packet
}

#[test]
fn a_client_becomes_known_by_its_second_packet() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let maps = Maps::default();
        let (verdict, translated) = maps.receives(SERVICES[0], protocol, SYN);
        assert_eq!(verdict, Verdict::ToBackend);
        assert_eq!(translated, key(CLIENT, SERVER, protocol));
        assert_eq!(maps.tables(), [ClientTable::New]);
        assert_eq!(maps.shown(protocol), Some(SERVICES[0].0));
        maps.receives(SERVICES[0], protocol, ACK);
        assert!(maps.tables().contains(&ClientTable::Known));
        assert_eq!(maps.shown(protocol), Some(SERVICES[0].0));
    }
}

#[test]
fn a_repeated_syn_makes_no_client_known() {
    let maps = Maps::default();
    for _ in 0..3 {
        maps.receives(SERVICES[0], PROTOCOL_TCP, SYN);
    }
    assert_eq!(maps.tables(), [ClientTable::New]);
}

#[test]
fn replies_leave_from_the_service_of_the_clients_last_request() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let maps = Maps::default();
        for service in [SERVICES[0], SERVICES[1], SERVICES[0]] {
            for flags in [SYN, ACK] {
                maps.receives(service, protocol, flags);
                assert_eq!(maps.shown(protocol), Some(service.0));
            }
        }
    }
}

#[test]
fn a_direct_connection_ends_the_one_through_the_service() {
    let maps = Maps::default();
    for flags in [SYN, ACK] {
        maps.receives(SERVICES[0], PROTOCOL_TCP, flags);
    }
    // Not what is under way, which can only be a stray packet.
    for (flags, shown) in [
        (ACK, Some(SERVICES[0].0)),
        (RST, Some(SERVICES[0].0)),
        (SYN, None),
    ] {
        assert_eq!(
            maps.receives(SERVER, PROTOCOL_TCP, flags).0,
            Verdict::NotOurs
        );
        assert_eq!(maps.shown(PROTOCOL_TCP), shown, "{flags:#x}");
    }
}

#[test]
fn a_connection_is_open_until_both_sides_end_it_or_it_falls_silent() {
    let new_connection = || {
        let maps = Maps::default();
        maps.receives(SERVICES[0], PROTOCOL_TCP, SYN);
        assert!(!maps.is_open());
        maps.receives(SERVICES[0], PROTOCOL_TCP, ACK);
        assert!(maps.is_open());
        maps
    };
    let maps = new_connection();
    maps.receives(SERVICES[0], PROTOCOL_TCP, FIN | ACK);
    assert!(maps.is_open());
    maps.sends(PROTOCOL_TCP, FIN | ACK);
    assert!(!maps.is_open());
    // The port's next connection is another one.
    maps.receives(SERVICES[0], PROTOCOL_TCP, SYN);
    assert!(maps.is_open());

    let maps = new_connection();
    maps.sends(PROTOCOL_TCP, RST);
    assert!(!maps.is_open());

    let maps = new_connection();
    maps.now.set(3_600);
    assert!(maps.is_open());
    maps.now.set(7_200);
    assert!(!maps.is_open());
}

#[test]
fn flows_of_datagrams_are_soon_over() {
    let maps = Maps::default();
    for _ in 0..2 {
        maps.receives(SERVICES[0], PROTOCOL_UDP, 0);
    }
    maps.now.set(30);
    assert!(maps.is_open());
    maps.sends(PROTOCOL_UDP, 0);
    maps.now.set(80);
    assert!(maps.is_open());
    maps.now.set(100);
    assert!(!maps.is_open());
}

#[test]
fn a_connection_whose_entry_was_evicted_is_still_answered_as_the_service() {
    let maps = Maps::default();
    for flags in [SYN, ACK] {
        maps.receives(SERVICES[0], PROTOCOL_TCP, flags);
    }
    assert_eq!(maps.shown(PROTOCOL_TCP), Some(SERVICES[0].0));
    maps.clients.borrow_mut().clear();
    assert_eq!(maps.shown(PROTOCOL_TCP), Some(SERVICES[0].0));
    assert_eq!(maps.tables(), [ClientTable::Known]);
}

/// Until its client begins a direct connection on the same port: what the old socket says then must be its own.
#[test]
fn what_is_kept_for_a_socket_is_not_shown_to_a_direct_client() {
    let maps = Maps::default();
    for flags in [SYN, ACK] {
        maps.receives(SERVICES[0], PROTOCOL_TCP, flags);
    }
    assert_eq!(maps.shown(PROTOCOL_TCP), Some(SERVICES[0].0));
    maps.receives(SERVER, PROTOCOL_TCP, SYN);
    assert_eq!(maps.shown(PROTOCOL_TCP), None);
    maps.receives(SERVICES[1], PROTOCOL_TCP, SYN);
    assert_eq!(maps.shown(PROTOCOL_TCP), Some(SERVICES[1].0));
}

#[test]
fn the_answer_to_a_syn_without_an_entry_is_dropped() {
    let maps = Maps::default();
    maps.receives(SERVICES[0], PROTOCOL_TCP, SYN);
    maps.clients.borrow_mut().clear();
    assert_eq!(maps.sends(PROTOCOL_TCP, SYN | ACK).0, Verdict::NoFlow);
    maps.receives(SERVER, PROTOCOL_TCP, SYN);
    assert_eq!(maps.sends(PROTOCOL_TCP, SYN | ACK).0, Verdict::NotOurs);
}

/// CRIU ends with a window probe on each connection.
#[test]
fn a_restored_connection_sends_nothing_before_its_client_does() {
    let maps = Maps::default();
    maps.is_restored.set(true);
    for flags in [ACK, ACK | FIN] {
        assert_eq!(maps.sends(PROTOCOL_TCP, flags).0, Verdict::NoFlow);
    }
    // A connection that the server itself begins.
    assert_eq!(maps.sends(PROTOCOL_TCP, SYN).0, Verdict::NotOurs);
    maps.receives(SERVICES[0], PROTOCOL_TCP, ACK);
    assert_eq!(maps.shown(PROTOCOL_TCP), Some(SERVICES[0].0));
}
