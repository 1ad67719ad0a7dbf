//! The stages of the decision as global functions, see [`lb_common::steer::stages`].

use lb_common::{
    address::{V4, V6},
    for_stages,
    maps::Mac,
    steer::{
        FlowEnd, Hook, PacketMeta, TimeWait, Tried, Tuple,
        stages::{self, AddressOf, FlowOf, KeyOf},
    },
};

use crate::maps::Maps;

macro_rules! functions {
    ($($stages:tt)+) => {
        functions_of!(V4, "_v4", $($stages)+);
        functions_of!(V6, "_v6", $($stages)+);
    };
}

/// The global functions of one family. The verifier demands the comparisons with null, which never holds.
macro_rules! functions_of {
    ($address:ty, $suffix:literal, $($name:ident(
        $($scalar:ident: $scalar_type:ty),*; $($shared:ident: $target:ty),* $(; $mutable:ident: $changed:ty)?
    ) -> $result:ty;)+) => {
        impl Maps<$address> {
            $(
                #[unsafe(export_name = concat!(stringify!($name), $suffix))]
                #[inline(never)]
                pub unsafe extern "C" fn $name(
                    $($scalar: $scalar_type,)* $($shared: *const $target,)* $($mutable: *mut $changed)?
                ) -> $result {
                    $(
                        // SAFETY: the caller passes a reference.
                        let Some($shared) = (unsafe { $shared.as_ref() }) else {
                            return Default::default();
                        };
                    )*
                    $(
                        // SAFETY: as above.
                        let Some($mutable) = (unsafe { $mutable.as_mut() }) else {
                            return Default::default();
                        };
                    )?
                    stages::$name(&Self::NEW, $($scalar,)* $($shared,)* $($mutable)?)
                }
            )+
        }
    };
}

for_stages!(functions);
