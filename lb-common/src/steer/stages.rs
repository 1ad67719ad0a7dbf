//! The stages of a decision that the kernel's verifier checks once each.
//!
//! The verifier checks a static function again on every path that leads to it, which adds up to hundreds of thousands
//! of instructions. It checks a global function once, with unknown arguments. So the decision calls each stage as a
//! method of [`Tables`]: the default method calls the function here, and lb-ebpf puts a global function in between.
//! That is why a stage takes scalars and references, and returns a scalar. A reference to the stack must be to a
//! structure without padding, which the verifier takes for uninitialized; and the verifier of Linux 6.1 rejects a
//! reference that a stage passes on as the key or value of a map.

use super::Tables;
use crate::maps::{Flow, FlowKey};

pub use super::{
    choice::{choose, choose_another},
    client::count_connection,
    closing::close,
    established::end_if_over,
    handshake::end_handshake,
    new_connection::allocate_slot,
    port::{allocate, inspect, reclaim, release},
    reply::{find_by_reply, find_by_routed_reply},
    report::report_flow,
    retry::move_handshake,
    slot::{find_by_client, find_slot, holds},
    unknown::is_peer,
};

pub type AddressOf<T> = <T as Tables>::Address;
pub type KeyOf<T> = FlowKey<AddressOf<T>>;
pub type FlowOf<T> = Flow<AddressOf<T>>;

/// Passes the stages to a macro: scalars, references, a mutable reference. The types must be in the macro's scope.
#[macro_export]
macro_rules! for_stages {
    ($macro:ident) => {
        $macro! {
            find_by_reply(hook: Hook; key: KeyOf<Self>) -> u32;
            find_by_routed_reply(hook: Hook; key: KeyOf<Self>) -> u32;
            find_by_client(; key: KeyOf<Self>) -> u32;
            holds(slot: u32, tuple: Tuple; key: KeyOf<Self>) -> bool;
            find_slot(hash: u64;) -> u32;
            choose(service: u32; key: KeyOf<Self>) -> u32;
            choose_another(service: u32, rank: u32; tried: Tried) -> u32;
            allocate_slot(backend: u32; packet: PacketMeta) -> u32;
            allocate(pool: u32;) -> u32;
            inspect(pool: u32, position: u32;) -> u64;
            release(backend: u32, time_wait: TimeWait; translated: KeyOf<Self>) -> u32;
            reclaim(backend: u32; translated: KeyOf<Self>) -> u32;
            end_handshake(slot: u32, time_wait: TimeWait;) -> u32;
            move_handshake(slot: u32;) -> u32;
            end_if_over(flags: u8, keeps: bool; key: KeyOf<Self>; flow: FlowOf<Self>) -> FlowEnd;
            close(flags: u8, sequence: u32, sequence_end: u32; key: KeyOf<Self>; flow: FlowOf<Self>) -> u32;
            report_flow(kind: u8, other: u64; key: KeyOf<Self>, flow: FlowOf<Self>) -> u32;
            count_connection(begins: bool; client: AddressOf<Self>) -> u32;
            is_peer(interface: u32; mac: Mac) -> bool;
        }
    };
}

/// The methods of [`Tables`], which call the stages in place.
macro_rules! stage_methods {
    ($($name:ident(
        $($scalar:ident: $scalar_type:ty),*; $($shared:ident: $target:ty),* $(; $mutable:ident: $changed:ty)?
    ) -> $result:ty;)+) => {
        $(
            #[doc(hidden)]
            #[inline(always)]
            fn $name(&self, $($scalar: $scalar_type,)* $($shared: &$target,)* $($mutable: &mut $changed)?) -> $result {
                $crate::steer::stages::$name(self, $($scalar,)* $($shared,)* $($mutable)?)
            }
        )+
    };
}
pub(super) use stage_methods;
