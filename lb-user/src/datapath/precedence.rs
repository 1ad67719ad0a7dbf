//! Programs of another memlb that receive an interface's packets before this one's.

use std::{io, path::Path};

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};

use super::{
    attach::{self, AttachMode, INGRESS, XDP},
    filters,
    interface::InterfaceRef,
    link_info,
};

/// Returns the names and numbers of memlb's programs that receive the packets of an interface before those whose links
/// are pinned in `links`. Programs of other tools do not count.
///
/// Where the kernel does not let this process read programs by their number (`CAP_SYS_ADMIN`), it finds none.
///
/// # Errors
///
/// Returns the kernel's error.
///
/// # Minimum kernel version
///
/// Linux 6.6 (e420bed02507) for programs of TC; before, one manager's filter replaces that of the other.
pub fn preceding(links: &Path, target: InterfaceRef<'_>, mode: AttachMode) -> Result<Vec<String>> {
    let mut found = Vec::new();
    // In mode XDP no other XDP program can be attached.
    if mode == AttachMode::Tc
        && let Some(id) = filters::xdp_program(target.index)?
    {
        let mut programs = loaded_programs().flatten();
        found.extend(programs.find(|it| it.id() == id && it.name_as_str() == Some(XDP)));
    }
    if attach::has_tcx()? {
        let own = program(&attach::pin(links, INGRESS, target.name))?;
        let all = match SchedClassifier::query_tcx(target.name, TcAttachType::Ingress) {
            Ok((_, all)) => all,
            Err(_) => Vec::new(),
        };
        if let Some(position) = all.iter().position(|it| Some(it.id()) == own) {
            let before = all.into_iter().take(position);
            found.extend(before.filter(|it| it.name_as_str() == Some(INGRESS)));
        }
    }
    let name = |it: &ProgramInfo| format!("{} ({})", it.name_as_str().unwrap_or_default(), it.id());
    Ok(found.iter().map(name).collect())
}

/// The number of the program of a pinned link.
fn program(pin: &Path) -> Result<Option<u32>> {
    let program: io::Result<_> = link_info::program_of(pin);
    program.with_context(|| format!("look at {}", pin.display()))
}
