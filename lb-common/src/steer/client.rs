//! Counts of each client's connections if `limits.per_client` is set: half open or open, of every mode.
//!
//! A connection is counted at its begin and its end, so other packets of established connections cost nothing. The
//! manager corrects the counts of connections that end without a packet.

use super::Tables;
use crate::{address::Address, maps::Settings};

/// Whether the client of this address has as many connections as allowed.
#[inline(never)]
pub(super) fn is_at_limit<T: Tables>(tables: &T, client: &T::Address) -> bool {
    let Some(settings) = tables.settings().filter(is_limited) else {
        return false;
    };
    let connections = tables.client_connections(&client.prefix());
    connections >= settings.per_client.into()
}

/// Adds a connection to the client's count, or removes one, if connections are limited by client.
#[inline(always)]
pub(super) fn count<T: Tables>(tables: &T, begins: bool, client: &T::Address) {
    if tables.settings().is_some_and(|it| is_limited(&it)) {
        tables.count_connection(begins, client);
    }
}

/// The same if they are limited. Returns 0.
#[inline(always)]
pub fn count_connection<T: Tables>(tables: &T, begins: bool, client: &T::Address) -> u32 {
    tables.count_client(&client.prefix(), begins);
    0
}

#[inline(always)]
fn is_limited(settings: &&Settings) -> bool {
    settings.per_client != 0
}
