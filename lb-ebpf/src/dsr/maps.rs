//! The DSR translator's maps, and the implementation of [`DsrTables`] over them.

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage},
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_sk_fullsock, bpf_sk_storage_get, bpf_tcp_sock,
    },
    macros::btf_map,
};
use lb_common::{
    address::{V4, V6},
    dsr::{ClientTable, DsrPacket, DsrTables},
    maps::{
        Counter, DsrClient, FlowKey, MAX_DSR_CLIENTS, MAX_NEW_DSR_CLIENTS, MAX_TRANSLATIONS,
        PORT_WORDS, ServiceKey, Translation, coarse_time, port_bit, port_word,
    },
    packet::IpAddress,
    verdict::Verdict,
};
use lb_ebpf::packet_bytes::HeaderOffset;

use crate::direction::Direction;

/// Layout version of the maps. Only agents read it.
#[btf_map(name = "version")]
static VERSION: Array<u32, 1> = Array::new();

#[btf_map(name = "translations")]
static TRANSLATIONS: HashMap<ServiceKey, Translation, { MAX_TRANSLATIONS as usize }> =
    HashMap::new();

#[btf_map(name = "ports")]
static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

#[btf_map(name = "clients")]
static CLIENTS: LruHashMap<FlowKey, DsrClient, { MAX_DSR_CLIENTS as usize }> = LruHashMap::new();

#[btf_map(name = "clients6")]
static CLIENTS6: LruHashMap<FlowKey<V6>, DsrClient<V6>, { MAX_DSR_CLIENTS as usize }> =
    LruHashMap::new();

#[btf_map(name = "new_clients")]
static NEW_CLIENTS: LruHashMap<FlowKey, DsrClient, { MAX_NEW_DSR_CLIENTS as usize }> =
    LruHashMap::new();

#[btf_map(name = "new_clients6")]
static NEW_CLIENTS6: LruHashMap<FlowKey<V6>, DsrClient<V6>, { MAX_NEW_DSR_CLIENTS as usize }> =
    LruHashMap::new();

/// The service that the client of a socket uses.
#[btf_map(name = "sockets")]
static SOCKETS: SkStorage<ServiceKey> = SkStorage::new();

#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<Counter, { Verdict::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "packet_scratch")]
static PACKET_SCRATCH: PerCpuArray<PacketScratch<V4>, 1> = PerCpuArray::new();

#[btf_map(name = "packet_scratch6")]
static PACKET_SCRATCH6: PerCpuArray<PacketScratch<V6>, 1> = PerCpuArray::new();

/// Scratch space for the present packet.
#[repr(C)]
pub struct PacketScratch<A> {
    pub packet: DsrPacket<A>,
    pub header_offset: HeaderOffset,
}

/// An address family with its maps.
pub trait Family: IpAddress {
    fn packet_scratch() -> Option<&'static mut PacketScratch<Self>>;
    fn client(table: ClientTable, reply_key: &FlowKey<Self>) -> Option<*mut DsrClient<Self>>;
    fn insert_client(
        table: ClientTable,
        reply_key: &FlowKey<Self>,
        client: &DsrClient<Self>,
    ) -> bool;
    fn remove_client(table: ClientTable, reply_key: &FlowKey<Self>);
}

macro_rules! families {
    ($($address:ty: $scratch:ident $known:ident $new:ident;)+) => {
        $(
            impl Family for $address {
                #[inline(always)]
                fn packet_scratch() -> Option<&'static mut PacketScratch<Self>> {
                    // SAFETY: a per-CPU slot. Each CPU handles one packet at a time, because both hooks run with
                    // bottom halves off.
                    $scratch.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
                }

                // Each map has its own call sites, because shared ones are not inlined.
                #[inline(always)]
                fn client(table: ClientTable, reply_key: &FlowKey<Self>) -> Option<*mut DsrClient<Self>> {
                    match table {
                        ClientTable::Known => $known.get_ptr_mut(reply_key),
                        ClientTable::New => $new.get_ptr_mut(reply_key),
                    }
                }

                #[inline(always)]
                fn insert_client(table: ClientTable, reply_key: &FlowKey<Self>, client: &DsrClient<Self>) -> bool {
                    let flags = BPF_ANY.into();
                    match table {
                        ClientTable::Known => $known.insert(reply_key, client, flags),
                        ClientTable::New => $new.insert(reply_key, client, flags),
                    }
                    .is_ok()
                }

                #[inline(always)]
                fn remove_client(table: ClientTable, reply_key: &FlowKey<Self>) {
                    // The entry may already be gone.
                    _ = match table {
                        ClientTable::Known => $known.remove(reply_key),
                        ClientTable::New => $new.remove(reply_key),
                    };
                }
            }
        )+
    };
}

families! {
    V4: PACKET_SCRATCH CLIENTS NEW_CLIENTS;
    V6: PACKET_SCRATCH6 CLIENTS6 NEW_CLIENTS6;
}

/// The maps of one address family, and the packet's socket.
pub struct Maps<A> {
    skb: *mut __sk_buff,
    family: PhantomData<A>,
}

impl<A: Family> Maps<A> {
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Self {
        Self {
            skb,
            family: PhantomData,
        }
    }

    /// The TCP socket that sends the packet.
    #[inline(always)]
    fn stream_socket(&self) -> Option<*mut bpf_sock> {
        const SOCK_STREAM: u32 = 1;
        // SAFETY: a valid context, and pointers that are checked. Linux 5.1, 46f8bc92758c.
        unsafe {
            let socket = (*self.skb).__bindgen_anon_2.sk;
            if socket.is_null() {
                return None;
            }
            let whole = bpf_sk_fullsock(socket);
            // RSTs come from a socket of the kernel.
            (!whole.is_null() && (*whole).type_ == SOCK_STREAM).then_some(whole)
        }
    }

    /// Storage of the TCP socket that sends the packet. `flags` may ask to create it.
    #[inline(always)]
    fn socket(&self, flags: u64) -> Option<*mut ServiceKey> {
        let socket = self.stream_socket()?;
        let map = (&raw const SOCKETS).cast_mut().cast();
        // SAFETY: a socket and a map of the kernel. Linux 5.2, 6ac99e8f23d4.
        let service: *mut ServiceKey =
            unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), flags) }.cast();
        (!service.is_null()).then_some(service)
    }

    /// Whether the packet's port is tracked. Other packets need no further look-up.
    #[inline(always)]
    pub fn is_tracked_port(&self, direction: Direction, key: &FlowKey<A>) -> bool {
        let is_source = direction == Direction::Egress;
        let port = if is_source {
            key.source_port
        } else {
            key.destination_port
        };
        PORTS
            .get(port_word(key.protocol as u8, port, is_source))
            .is_some_and(|word| word & port_bit(port) != 0)
    }
}

impl<A: Family> DsrTables for Maps<A> {
    type Address = A;
    type Entry<'a> = &'a mut DsrClient<A>;

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper takes no argument. Linux 5.11, d05512618056.
        coarse_time(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn translation(&self, service: &ServiceKey) -> Option<Translation> {
        // SAFETY: copied at once; this program never changes the map.
        unsafe { TRANSLATIONS.get(service) }.copied()
    }

    #[inline(always)]
    fn client(&self, table: ClientTable, reply_key: &FlowKey<A>) -> Option<&mut DsrClient<A>> {
        let client = A::client(table, reply_key)?;
        // SAFETY: the element stays readable and writable while the program runs (RCU). After a concurrent eviction,
        // writes may go to another entry's time stamp.
        Some(unsafe { &mut *client })
    }

    #[inline(always)]
    fn insert_client(
        &self,
        table: ClientTable,
        reply_key: &FlowKey<A>,
        client: &DsrClient<A>,
    ) -> bool {
        A::insert_client(table, reply_key, client)
    }

    #[inline(always)]
    fn remove_client(&self, table: ClientTable, reply_key: &FlowKey<A>) {
        A::remove_client(table, reply_key);
    }

    #[inline(always)]
    fn socket_service(&self) -> Option<ServiceKey> {
        // SAFETY: the storage lives as long as the socket, to which the packet holds a reference.
        self.socket(0)
            .map(|socket_service| unsafe { *socket_service })
    }

    #[inline(always)]
    fn set_socket_service(&self, service: &ServiceKey) {
        if let Some(socket_service) = self.socket(BPF_SK_STORAGE_GET_F_CREATE.into()) {
            // SAFETY: as above; a connection uses one service for all its lifetime.
            unsafe { *socket_service = *service };
        }
    }

    #[inline(always)]
    fn socket_has_received_nothing(&self) -> bool {
        self.stream_socket().is_some_and(|socket| {
            // SAFETY: a TCP socket, and a pointer that is checked. Linux 5.1, 655a51e536c0.
            unsafe {
                let tcp = bpf_tcp_sock(socket);
                !tcp.is_null() && (*tcp).segs_in == 0
            }
        })
    }
}

/// Counts a packet under its verdict.
#[inline(always)]
pub fn count(verdict: Verdict, packets: u32, bytes: u32) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: a per-CPU slot.
        let counter = unsafe { &mut *counter };
        counter.packets += u64::from(packets);
        counter.bytes += u64::from(bytes);
    }
}
