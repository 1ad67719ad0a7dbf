//! Programs of another memlb that receive an interface's packets before this one's.

use std::{collections::BTreeMap, io, path::Path};

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, loaded_programs};

use super::{
    announcement,
    attach::{self, AttachMode, INGRESS, XDP},
    interface::InterfaceRef,
    link_info, netlink_query,
};

/// Returns the names and numbers of memlb's programs that receive the packets of an interface before those whose links
/// are pinned in `links`. Programs of other tools do not count.
///
/// Where the kernel does not let this process read programs by their number (`CAP_SYS_ADMIN`), programs of any tool
/// count if another manager announces itself at the interface.
///
/// # Errors
///
/// Returns the kernel's error.
///
/// # Minimum kernel version
///
/// Linux 6.6 (e420bed02507) for programs of TC; before, one manager's filter replaces that of the other.
pub fn preceding(links: &Path, target: InterfaceRef<'_>, mode: AttachMode) -> Result<Vec<String>> {
    let mut before = Vec::new();
    // In mode XDP no other XDP program can be attached.
    if mode == AttachMode::Tc {
        let id = netlink_query::xdp_program(target.index)?;
        before.extend(id.map(|id| (id, XDP)));
    }
    if attach::has_tcx()? {
        let own = program(&attach::pin(links, INGRESS, target.name))?;
        let all = link_info::ingress_programs(target.index)
            .with_context(|| format!("list the programs of {}", target.name))?;
        if let Some(position) = all.iter().position(|id| Some(*id) == own) {
            let ids = all.into_iter().take(position);
            before.extend(ids.map(|id| (id, INGRESS)));
        }
    }
    if before.is_empty() {
        return Ok(Vec::new());
    }
    let names = names();
    if names.is_empty() {
        return unnamed(&before, target);
    }
    let ours = |(id, name): &(u32, &str)| names.get(id).is_some_and(|it| it == name);
    let found = before.iter().filter(|it| ours(it));
    Ok(found.map(|(id, name)| format!("{name} ({id})")).collect())
}

/// The names of all programs, as far as this process may read them.
fn names() -> BTreeMap<u32, String> {
    let name = |it: ProgramInfo| (it.id(), it.name_as_str().unwrap_or_default().to_owned());
    loaded_programs().flatten().map(name).collect()
}

/// The programs, whose names are unknown, if another manager is there.
fn unnamed(before: &[(u32, &str)], target: InterfaceRef<'_>) -> Result<Vec<String>> {
    let is_other = announcement::is_other_at(target.index).context("look for other managers")?;
    let ids = before.iter().filter(|_| is_other);
    Ok(ids.map(|(id, _)| format!("program {id}")).collect())
}

/// The number of the program of a pinned link.
fn program(pin: &Path) -> Result<Option<u32>> {
    let program: io::Result<_> = link_info::program_of(pin);
    program.with_context(|| format!("look at {}", pin.display()))
}
