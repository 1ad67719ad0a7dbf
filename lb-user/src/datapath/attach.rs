//! Attachment of one program to one interface by TC or native XDP.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
        xdp::XdpLink,
    },
};
use tracing::{info, warn};

use super::{
    bpffs,
    interface::{Interface, InterfaceRef, name_of},
    kernel, link_info, netlink_query,
};
use crate::config::Attach;

pub const INGRESS: &str = "memlb_ingress";
pub const EGRESS: &str = "memlb_egress";
pub const LOOPBACK: &str = "memlb_loopback";
pub const XDP: &str = "memlb_xdp";
/// Programs of a DSR translator.
pub const DSR_IN: &str = "memlb_dsr_in";
pub const DSR_OUT: &str = "memlb_dsr_out";

/// Priority of memlb's clsact filters. Priority and handles are constant, so that a restart replaces the filters in
/// place.
const CLSACT_PRIORITY: u16 = 808;

lb_common::named_enum! {
    /// The kind of program that receives an interface's packets.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum AttachMode {
        Tc = "tc",
        Xdp = "xdp",
    }
}

/// A program and the direction of its packets; `None` for XDP.
pub type Program = (&'static str, Option<TcAttachType>);

/// The manager's TC programs on each interface, and on `lo`.
pub const TC_PROGRAMS: [Program; 2] = [
    (INGRESS, Some(TcAttachType::Ingress)),
    (EGRESS, Some(TcAttachType::Egress)),
];
pub const LOOPBACK_PROGRAMS: [Program; 1] = [(LOOPBACK, Some(TcAttachType::Egress))];

/// The programs of a DSR translator on each interface.
pub const DSR_PROGRAMS: [Program; 2] = [
    (DSR_IN, Some(TcAttachType::Ingress)),
    (DSR_OUT, Some(TcAttachType::Egress)),
];

/// Attaches a program, replacing an earlier one of its kind.
///
/// # Errors
///
/// Names program and interface.
pub fn attach(
    ebpf: &mut Ebpf,
    links: &Path,
    attached: Program,
    target: InterfaceRef<'_>,
) -> Result<()> {
    match attached {
        (name, Some(direction)) => attach_tc(ebpf, links, name, target, direction),
        (_, None) => attach_xdp(program(ebpf, XDP)?, links, target),
    }
}

/// Whether the kernel has the program attached to the interface.
///
/// # Errors
///
/// The kernel does not answer.
pub fn is_attached(links: &Path, program: Program, target: InterfaceRef<'_>) -> Result<bool> {
    let (name, direction) = program;
    match direction {
        Some(direction) if !has_tcx()? => netlink_query::has_filter(
            target.index,
            direction,
            CLSACT_PRIORITY,
            clsact_handle(name),
        ),
        _ => is_linked(&pin(links, name, target.name), target),
    }
}

/// Whether the link pinned at `path` is attached to the interface.
fn is_linked(path: &Path, target: InterfaceRef<'_>) -> Result<bool> {
    Ok(linked_interface(path)? == Some(target.index))
}

fn linked_interface(path: &Path) -> Result<Option<u32>> {
    link_info::interface_of(path).with_context(|| format!("read the link {}", path.display()))
}

/// Renames the pins of all links to the present names of their interfaces, and returns whether any was renamed. Renames
/// in two steps, because two interfaces may have exchanged names.
///
/// # Errors
///
/// Names the pin that could not be read or renamed.
pub fn rename_pins(links: &Path) -> Result<bool> {
    let mut moves = Vec::new();
    for path in bpffs::files(links)? {
        let Some(name) = linked_interface(&path)?.and_then(name_of) else {
            continue;
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((program, _)) = file.split_once('@') else {
            continue;
        };
        let new = pin(links, program, &name);
        if path != new {
            let temporary = links.join(format!("{file}-moves"));
            moves.push((path, temporary, new));
        }
    }
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))
    };
    for (old, temporary, _) in &moves {
        rename(old, temporary)?;
    }
    for (_, temporary, new) in &moves {
        rename(temporary, new)?;
    }
    Ok(!moves.is_empty())
}

/// Chooses TC or XDP for all interfaces, because XDP can send only to interfaces that run it, too. Attaches XDP if
/// chosen. Returns one reason for each interface.
pub fn choose_mode(
    ebpf: &mut Ebpf,
    links: &Path,
    requested: Attach,
    interfaces: &[Interface],
) -> Result<(AttachMode, Vec<String>)> {
    let all = |reason: &str| vec![reason.to_owned(); interfaces.len()];
    if requested == Attach::Tc {
        return Ok((AttachMode::Tc, all("attach = \"tc\" is configured")));
    }
    let unsuited: Vec<Option<String>> = interfaces.iter().map(unsuited_to_xdp).collect();
    if requested == Attach::Auto
        && let Some(first) = unsuited.iter().flatten().next()
    {
        let reasons = unsuited
            .iter()
            .map(|reason| reason.as_ref().unwrap_or(first));
        return Ok((AttachMode::Tc, reasons.cloned().collect()));
    }
    let program: &mut Xdp = program(ebpf, XDP)?;
    let outcome = program.load().context("load memlb_xdp").and_then(|()| {
        interfaces
            .iter()
            .try_for_each(|interface| attach_xdp(program, links, interface.target()))
    });
    if outcome.is_ok() && requested == Attach::Xdp {
        for interface in interfaces {
            if let Some(harm) = xdp_drawback(interface) {
                let name = &interface.name;
                warn!(
                    "attach = \"xdp\" is configured, but {name} is {harm}; use attach = \"auto\""
                );
            }
        }
    }
    match (outcome, requested) {
        (Ok(()), Attach::Xdp) => Ok((AttachMode::Xdp, all("attach = \"xdp\" is configured"))),
        (Ok(()), _) => Ok((AttachMode::Xdp, all("the driver runs XDP natively"))),
        (Err(error), Attach::Xdp) => Err(error.context(
            "attach = \"xdp\" is configured, but an interface cannot run XDP natively; use \
             attach = \"auto\" or \"tc\"",
        )),
        (Err(error), _) => {
            for interface in interfaces {
                remove_pin(&pin(links, XDP, &interface.name))?;
            }
            Ok((AttachMode::Tc, all(&format!("no native XDP: {error:#}"))))
        }
    }
}

/// Why TC is better than XDP on an interface; `None` if it is not.
pub fn unsuited_to_xdp(interface: &Interface) -> Option<String> {
    let Some(kind) = &interface.kind else {
        let vlan = vlan_above(Path::new("/sys/class/net"), &interface.name)?;
        return Some(format!(
            "it carries the VLAN interface {vlan}: a card that removes the tags hides them from XDP"
        ));
    };
    Some(format!(
        "a virtual interface ({kind}): XDP would see partial checksums and split GSO packets"
    ))
}

/// What fails if XDP runs on an interface for which TC is better.
pub fn xdp_drawback(interface: &Interface) -> Option<String> {
    if interface.kind.as_deref() == Some("veth") {
        return Some(
            "a veth: its driver drops what XDP sends, without an error, unless the other end has GRO on \
             (there: ethtool -K NAME gro on) or runs XDP, too; connections then time out"
                .to_owned(),
        );
    }
    unsuited_to_xdp(interface)
}

/// A VLAN interface on top of an interface, by the links in sysfs directory `classes`.
fn vlan_above(classes: &Path, interface: &str) -> Option<String> {
    let links = fs::read_dir(classes.join(interface)).ok()?;
    links.flatten().find_map(|link| {
        let name = link.file_name().into_string().ok()?;
        let upper = name.strip_prefix("upper_")?;
        let text = fs::read_to_string(classes.join(upper).join("uevent")).ok()?;
        let is_vlan = text.lines().any(|line| line == "DEVTYPE=vlan");
        is_vlan.then(|| upper.to_owned())
    })
}

fn attach_xdp(program: &mut Xdp, links: &Path, target: InterfaceRef<'_>) -> Result<()> {
    attach_pinned(&pin(links, XDP, target.name), target, |former| {
        let id = match former {
            Some(link) => program.attach_to_link(XdpLink::try_from(link)?)?,
            None => program.attach_to_if_index(target.index, XdpMode::Driver)?,
        };
        Ok(program.take_link(id)?.try_into()?)
    })
    .with_context(|| format!("attach {XDP} to {}", target.name))
}

/// Attaches a TC program, by tcx with a pinned link, or by clsact, which has no links.
fn attach_tc(
    ebpf: &mut Ebpf,
    links: &Path,
    name: &str,
    target: InterfaceRef<'_>,
    direction: TcAttachType,
) -> Result<()> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    let path = pin(links, name, target.name);
    let context = || format!("attach {name} to {}", target.name);
    if !has_tcx()? {
        return attach_clsact(program, clsact_handle(name), target.name, direction)
            .with_context(context);
    }
    let attach = |former| {
        let id = match former {
            Some(link) => program.attach_to_link(SchedClassifierLink::try_from(link)?)?,
            // First, because memlb would not see packets that an earlier program redirects or drops.
            None => {
                let order = TcAttachOptions::TcxOrder(LinkOrder::first());
                program.attach_with_options(target.name, direction, order)?
            }
        };
        Ok(program.take_link(id)?.try_into()?)
    };
    attach_pinned(&path, target, attach).with_context(context)?;
    if !is_linked(&path, target)? {
        remove_pin(&path)?;
        bail!("{}: the interface was renamed meanwhile", context());
    }
    Ok(())
}

/// Whether to use tcx, Linux 6.6 (e420bed02507). `MEMLB_NO_TCX=1` disables it for tests.
pub(super) fn has_tcx() -> Result<bool> {
    Ok(std::env::var_os("MEMLB_NO_TCX").is_none() && kernel::is_at_least(6, 6)?)
}

/// Attaches by a netlink filter, which outlives this process. A filter of the same priority and handle is replaced.
fn attach_clsact(
    program: &mut SchedClassifier,
    handle: u32,
    interface: &str,
    direction: TcAttachType,
) -> Result<()> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {}
        // The qdisc exists already.
        Err(TcError::NetlinkError(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let link =
        SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, handle.into(), None)?;
    let id = match program.attach_to_link(link) {
        Ok(id) => id,
        Err(_) => program.attach_with_options(
            interface,
            direction,
            TcAttachOptions::Netlink(NlOptions {
                priority: CLSACT_PRIORITY,
                handle: handle.into(),
                ..NlOptions::default()
            }),
        )?,
    };
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Handle of a program's filters. A manager and a DSR translator may run on one machine.
fn clsact_handle(name: &str) -> u32 {
    if [DSR_IN, DSR_OUT].contains(&name) {
        2
    } else {
        1
    }
}

/// Removes the clsact filters of TC programs from all interfaces; returns whether there were any. The qdisc stays,
/// because other programs may use it.
pub fn detach_clsact(programs: &[Program]) -> Result<bool> {
    let mut found = false;
    let interfaces = nix::net::if_::if_nameindex().context("list the interfaces")?;
    for interface in &interfaces {
        let interface = interface.name().to_string_lossy();
        for (name, direction) in programs {
            let Some(direction) = *direction else {
                continue;
            };
            // Fails on interfaces without clsact, which have nothing to detach.
            found |= tc::qdisc_detach_program(&interface, direction, name).is_ok();
        }
    }
    Ok(found)
}

/// Loads TC programs into the kernel.
///
/// # Errors
///
/// Names the program that the kernel rejects.
pub fn load_classifiers(ebpf: &mut Ebpf, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| {
        let loaded = program::<SchedClassifier>(ebpf, name)?.load();
        loaded.with_context(|| format!("load {name}"))
    })
}

/// Returns a program of the object.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the kernel programs have no {name}"))?;
    Ok(program.try_into()?)
}

/// Path of the pin of a program's link to an interface. bpffs allows no dots in names.
pub fn pin(links: &Path, program: &str, interface: &str) -> PathBuf {
    links.join(format!("{program}@{}", interface.replace('.', "%2e")))
}

/// Replaces the program of the link pinned at `path`: `attach` gets that link. If it cannot be used, or none is pinned,
/// `attach` creates a link, which is pinned.
fn attach_pinned(
    path: &Path,
    target: InterfaceRef<'_>,
    mut attach: impl FnMut(Option<FdLink>) -> Result<FdLink>,
) -> Result<()> {
    if let Some(link) = pinned(path, target)? {
        match attach(Some(link.into())) {
            // The pin keeps the link alive.
            Ok(_) => return Ok(()),
            Err(error) => remove_stale_pin(path, &format!("{error:#}"))?,
        }
    }
    let pinned = attach(None)?.pin(path);
    pinned.with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Opens the link pinned at `path`; removes it if it belongs to another interface.
fn pinned(path: &Path, target: InterfaceRef<'_>) -> Result<Option<PinnedLink>> {
    if !path.exists() {
        return Ok(None);
    }
    if !is_linked(path, target)? {
        remove_stale_pin(path, "it is detached, or belongs to another interface")?;
        return Ok(None);
    }
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
    }
}

/// Removes the pin of a link that is detached, or whose interface is gone.
fn remove_stale_pin(path: &Path, why: &str) -> Result<()> {
    info!("{} is stale ({why}): attaching again", path.display());
    remove_pin(path)
}

/// Removes a link's pin. The program is detached when it returns, as with [`super::bpffs::remove`].
fn remove_pin(path: &Path) -> Result<()> {
    let link = PinnedLink::from_pin(path);
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    };
    drop(link);
    removed
}

/// Detaches programs of an earlier manager from other interfaces; returns whether there were any.
pub fn remove_unlisted_pins(links: &Path, kept: &[PathBuf]) -> Result<bool> {
    let mut found = false;
    for path in bpffs::files(links)? {
        if !kept.contains(&path) {
            warn!(
                "detaching {}, which is no longer configured",
                path.display()
            );
            remove_pin(&path)?;
            found = true;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{INGRESS, pin, vlan_above};

    #[test]
    fn a_pin_is_named_after_its_interface() {
        let path = pin(Path::new("links"), INGRESS, "eth1.7");
        assert_eq!(path, Path::new("links/memlb_ingress@eth1%2e7"));
    }

    #[test]
    fn finds_the_vlans_that_an_interface_carries() {
        let classes = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let file = classes.path().join(path);
            fs::create_dir_all(file.parent().expect("a folder")).expect("make it");
            fs::write(file, text).expect("write it");
        };
        write("eth1/upper_br0", "");
        write("br0/uevent", "DEVTYPE=bridge\nINTERFACE=br0\n");
        assert_eq!(vlan_above(classes.path(), "eth1"), None);
        write("eth1/upper_eth1.7", "");
        write("eth1.7/uevent", "DEVTYPE=vlan\nINTERFACE=eth1.7\n");
        let found = vlan_above(classes.path(), "eth1");
        assert_eq!(found.as_deref(), Some("eth1.7"));
        assert_eq!(vlan_above(classes.path(), "eth2"), None);
    }
}
