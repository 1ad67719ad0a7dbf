//! Programs of another memlb that receive an interface's packets before this one's.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, loaded_programs};

use super::{
    announcement,
    attach::{self, AttachMode, INGRESS, XDP},
    interface::InterfaceRef,
    link_info, netlink_query,
};

/// Returns the names and ids of memlb's programs that receive the packets of an interface before those whose links are
/// pinned in `links`. Programs of other tools do not count.
///
/// Without `CAP_SYS_ADMIN`, this process cannot read the names of programs. Then programs of any tool count if another
/// manager announces itself at the interface.
///
/// # Errors
///
/// The kernel's error.
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
    let is_memlb = |(id, name): &&(u32, &str)| names.get(id).is_some_and(|it| it == name);
    let found = before.iter().filter(is_memlb);
    Ok(found.map(|(id, name)| format!("{name} ({id})")).collect())
}

/// The names of all programs by id, as far as this process may read them.
fn names() -> BTreeMap<u32, String> {
    let name = |it: ProgramInfo| (it.id(), it.name_as_str().unwrap_or_default().to_owned());
    loaded_programs().flatten().map(name).collect()
}

/// The programs by id, if another manager announces itself at the interface.
fn unnamed(before: &[(u32, &str)], target: InterfaceRef<'_>) -> Result<Vec<String>> {
    let is_other = announcement::is_other_at(target.index).context("find other managers")?;
    let ids = before.iter().filter(|_| is_other);
    Ok(ids.map(|(id, _)| format!("program {id}")).collect())
}

/// The id of the program of a pinned link.
fn program(pin: &Path) -> Result<Option<u32>> {
    link_info::program_of(pin).with_context(|| format!("read the link {}", pin.display()))
}
