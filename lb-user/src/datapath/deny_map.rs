//! The map of denied prefixes, and the termination of denied clients' connections.
//!
//! The programs look up only clients without an established flow, so that the list costs established flows nothing.
//! Therefore the manager ends the flows of denied clients.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{
        HashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    address::{V4, V6},
    maps::{Flow, direction, name},
};
use nix::libc;

use super::{
    family::{Family, mapped},
    flows::{open_flows, read_flows},
    named_map::NamedMap,
};
use crate::deny::Prefix;

/// Flag of `bpf_map_update_elem`: write existing entries only.
const BPF_EXIST: u64 = 2;

/// Passes over the tables, because packets may create flows during a pass.
const ATTEMPTS: usize = 3;

#[derive(Debug)]
pub struct DenyMap(NamedMap<LpmTrie<MapData, V6, u32>>);

impl DenyMap {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        NamedMap::from_ebpf(ebpf, name::DENY).map(Self)
    }

    pub fn add(&mut self, prefix: Prefix) -> Result<()> {
        let added = self.0.insert(&key(prefix), 1, 0);
        added.with_context(|| format!("write {prefix} into map deny"))
    }

    pub fn remove(&mut self, prefix: Prefix) -> Result<()> {
        match self.0.remove(&key(prefix)) {
            Err(error) if !is_absent(&error) => {
                Err(error).with_context(|| format!("remove {prefix} from map deny"))
            }
            _ => Ok(()),
        }
    }

    /// Makes the map hold these prefixes and no others.
    pub fn set(&mut self, prefixes: impl Iterator<Item = Prefix>) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for prefix in prefixes {
            self.add(prefix)?;
            let (address, length) = prefix.mapped();
            wanted.insert((length, mapped(address)));
        }
        let is_stale = |key: &Key<V6>| !wanted.contains(&(key.prefix_len(), key.data()));
        let present: Vec<Key<V6>> = self.0.keys().filter_map(Result::ok).collect();
        for key in present.into_iter().filter(is_stale) {
            self.0.remove(&key).context("remove an entry of map deny")?;
        }
        Ok(())
    }
}

fn key(prefix: Prefix) -> Key<V6> {
    let (address, length) = prefix.mapped();
    Key::new(length, mapped(address))
}

fn is_absent(error: &aya::maps::MapError) -> bool {
    match error {
        aya::maps::MapError::SyscallError(error) => {
            error.io_error.raw_os_error() == Some(libc::ENOENT)
        }
        error => matches!(error, aya::maps::MapError::KeyNotFound),
    }
}

/// Ends the connections of clients with these prefixes and returns their number. The prefixes must be in the map. The
/// worker's next packet is answered with RST, the client's packets are dropped.
///
/// # Errors
///
/// Names the map that could not be read or written.
pub fn end_connections(pin_path: &Path, prefixes: &[Prefix]) -> Result<u64> {
    let denied = |client: IpAddr| prefixes.iter().any(|it| it.contains(client));
    let mut ended = 0;
    for _ in 0..ATTEMPTS {
        let found = end::<V4>(pin_path, denied)? + end::<V6>(pin_path, denied)?;
        ended += found;
        if found == 0 {
            break;
        }
    }
    Ok(ended)
}

/// Marks both entries of each connection as superseded. Without the mark, one would restore the other.
fn end<A: Family>(pin_path: &Path, denied: impl Fn(IpAddr) -> bool) -> Result<u64> {
    let write = || format!("write map {}", A::FLOWS);
    let mut flows = open_flows::<A>(pin_path)?;
    let entries = read_flows::<A>(pin_path)?;
    let of_client = entries.into_iter().filter(|(key, flow)| {
        let client = match flow.direction {
            direction::REQUEST => key.source,
            _ => flow.translated.destination,
        };
        flow.superseded == 0 && denied(client.ip())
    });
    let mut ended = 0;
    for (key, flow) in of_client {
        ended += u64::from(flow.counted);
        let over = Flow {
            superseded: 1,
            counted: 0,
            ..flow
        };
        match HashMap::insert(&mut flows, key, over, BPF_EXIST) {
            Err(error) if !is_absent(&error) => return Err(error).with_context(write),
            _ => {}
        }
    }
    Ok(ended)
}
