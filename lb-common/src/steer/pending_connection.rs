//! The connection that is being created.

use crate::{
    address::{Address, V4},
    maps::{Backend, FlowKey, mode},
};

/// The tuples of a connection that is being created, in the flow scratch because the stack is too small.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PendingConnection<A = V4> {
    pub(super) client: FlowKey<A>,
    pub(super) translated: FlowKey<A>,
    /// The keys of the port's last connection.
    pub(super) reply_key: FlowKey<A>,
    pub(super) request_key: FlowKey<A>,
    /// Hash of the client, which selects the bucket.
    pub(super) hash: u64,
    /// Address, as one word, of the client that holds the port inspected last.
    pub(super) holder: u32,
    /// Bits of [`service_flag`](crate::maps::service_flag) of the service.
    pub(super) flags: u32,
    /// The slot of the handshake.
    pub(super) slot: u32,
    /// 1: the SYN is kept.
    pub(super) keeps_syn: u32,
    /// Sequence number of the RST that ends an evicted handshake.
    pub reset_sequence: u32,
    reserved: u32,
}

impl<A: Address> PendingConnection<A> {
    /// Sets the tuple towards a backend, except the port of the manager.
    #[inline(always)]
    pub(super) fn translate(&mut self, backend: &Backend) {
        self.translated = self.client;
        if backend.mode != mode::DSR {
            self.translated.destination = A::from_mapped(&backend.address);
            self.translated.destination_port = backend.port.to_be_bytes();
        }
        if backend.mode == mode::NAT {
            self.translated.source = A::from_mapped(&backend.source);
        }
    }
}
