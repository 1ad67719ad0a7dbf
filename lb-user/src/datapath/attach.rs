//! Where in the kernel packets are met: TC or native XDP, chosen, attached, pinned, replaced.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
        xdp::XdpLink,
    },
};
use tracing::{info, warn};

use super::{kernel, netlink::Interface};
use crate::config::Attach;

/// Subdirectory of the pins in which links are pinned.
pub const LINKS: &str = "links";

pub const INGRESS: &str = "memlb_ingress";
const EGRESS: &str = "memlb_egress";
const LOOPBACK: &str = "memlb_loopback";
const XDP: &str = "memlb_xdp";
/// Those of a worker's companion.
pub const DSR_IN: &str = "memlb_dsr_in";
pub const DSR_OUT: &str = "memlb_dsr_out";

/// Priority of memlb's clsact filters, fixed like their handles, so that a restart replaces them in place.
const CLSACT_PRIORITY: u16 = 808;

/// An interface, and how memlb meets its packets.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub interface: String,
    pub choice: Choice,
    /// Why this way.
    pub reason: String,
    /// The interface's index when it was attached to; nothing while it is gone.
    pub index: Option<u32>,
    /// Whether it is back, but attaching has failed, so that this is said once.
    failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Tc,
    Xdp,
}

impl Choice {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            interface,
            choice,
            reason,
            ..
        } = self;
        write!(f, "attached to {interface} by {}: {reason}", choice.name())
    }
}

/// Attaches to every interface and to `lo`, replacing what an earlier manager attached.
pub fn attach(
    ebpf: &mut Ebpf,
    pin_path: &Path,
    wish: Attach,
    interfaces: &[Interface],
) -> Result<Vec<Attachment>> {
    let links = pin_path.join(LINKS);
    fs::create_dir_all(&links).with_context(|| format!("create {}", links.display()))?;
    for program in [INGRESS, EGRESS, LOOPBACK] {
        classifier(ebpf, program)?
            .load()
            .with_context(|| format!("load {program}"))?;
    }
    let mut kept = vec![attach_tc(
        ebpf,
        &links,
        LOOPBACK,
        "lo",
        TcAttachType::Egress,
    )?];
    for Interface { name, .. } in interfaces {
        kept.push(attach_tc(
            ebpf,
            &links,
            INGRESS,
            name,
            TcAttachType::Ingress,
        )?);
        kept.push(attach_tc(ebpf, &links, EGRESS, name, TcAttachType::Egress)?);
    }
    let (choice, reasons) = choose(ebpf, &links, wish, interfaces)?;
    if choice == Choice::Xdp {
        kept.extend(
            interfaces
                .iter()
                .map(|interface| pin(&links, XDP, &interface.name)),
        );
    }
    remove_others(&links, &kept)?;
    Ok(interfaces
        .iter()
        .zip(reasons)
        .map(|(interface, reason)| Attachment {
            interface: interface.name.clone(),
            choice,
            reason,
            index: index_of(&interface.name),
            failed: false,
        })
        .collect())
}

/// What has become of an interface since it was last looked at.
#[derive(Debug)]
pub enum Mended {
    Gone(String),
    /// And attached to.
    Back(String),
    /// There, but not attached to.
    Failed(String, anyhow::Error),
}

/// Attaches to an interface again that was made anew since.
pub fn mend(ebpf: &mut Ebpf, pin_path: &Path, attachment: &mut Attachment) -> Option<Mended> {
    let now = index_of(&attachment.interface);
    let name = attachment.interface.clone();
    if now == attachment.index {
        return None;
    }
    if now.is_none() {
        attachment.index = None;
        attachment.failed = false;
        return Some(Mended::Gone(name));
    }
    match attach_again(ebpf, &pin_path.join(LINKS), attachment) {
        Ok(()) => {
            attachment.index = now;
            attachment.failed = false;
            Some(Mended::Back(name))
        }
        Err(error) => {
            let first = !std::mem::replace(&mut attachment.failed, true);
            first.then_some(Mended::Failed(name, error))
        }
    }
}

fn attach_again(ebpf: &mut Ebpf, links: &Path, attachment: &Attachment) -> Result<()> {
    let name = &attachment.interface;
    attach_tc(ebpf, links, INGRESS, name, TcAttachType::Ingress)?;
    attach_tc(ebpf, links, EGRESS, name, TcAttachType::Egress)?;
    if attachment.choice == Choice::Xdp {
        let program: &mut Xdp = ebpf
            .program_mut(XDP)
            .with_context(|| format!("the kernel programs have no {XDP}"))?
            .try_into()?;
        attach_xdp(program, links, name)?;
    }
    Ok(())
}

pub fn index_of(interface: &str) -> Option<u32> {
    // Its one error says that there is no such interface.
    nix::net::if_::if_nametoindex(interface).ok()
}

/// Decides between TC and XDP for all interfaces alike, since XDP can send only to interfaces that
/// run it too; with XDP, attaches it. One reason an interface.
fn choose(
    ebpf: &mut Ebpf,
    links: &Path,
    wish: Attach,
    interfaces: &[Interface],
) -> Result<(Choice, Vec<String>)> {
    let all = |reason: &str| vec![reason.to_owned(); interfaces.len()];
    if wish == Attach::Tc {
        return Ok((Choice::Tc, all("attach = \"tc\" is configured")));
    }
    let unsuited: Vec<Option<String>> = interfaces.iter().map(unsuited_to_xdp).collect();
    if wish == Attach::Auto
        && let Some(first) = unsuited.iter().flatten().next()
    {
        let reasons = unsuited
            .iter()
            .map(|reason| reason.as_ref().unwrap_or(first));
        return Ok((Choice::Tc, reasons.cloned().collect()));
    }
    let program: &mut Xdp = ebpf
        .program_mut(XDP)
        .with_context(|| format!("the kernel programs have no {XDP}"))?
        .try_into()?;
    let outcome = program.load().context("load memlb_xdp").and_then(|()| {
        interfaces
            .iter()
            .try_for_each(|interface| attach_xdp(program, links, &interface.name))
    });
    match (outcome, wish) {
        (Ok(()), Attach::Xdp) => Ok((Choice::Xdp, all("attach = \"xdp\" is configured"))),
        (Ok(()), _) => Ok((Choice::Xdp, all("the driver runs XDP natively"))),
        (Err(error), Attach::Xdp) => Err(error.context(
            "attach = \"xdp\" is configured, but an interface cannot run XDP natively; use \
             attach = \"auto\" or \"tc\"",
        )),
        (Err(error), _) => {
            for interface in interfaces {
                remove_pin(&pin(links, XDP, &interface.name))?;
            }
            Ok((Choice::Tc, all(&format!("no native XDP: {error:#}"))))
        }
    }
}

/// Why TC is the better choice on an interface, if it is.
pub fn unsuited_to_xdp(interface: &Interface) -> Option<String> {
    let Some(kind) = &interface.kind else {
        let vlan = vlan_above(Path::new("/sys/class/net"), &interface.name)?;
        return Some(format!(
            "it carries the VLAN interface {vlan}: a card that takes the tags off would hide them from XDP"
        ));
    };
    Some(format!(
        "a virtual interface ({kind}): XDP would see half-computed checksums and split GSO packets"
    ))
}

/// A VLAN interface on top of an interface, as the links in `classes`, of sysfs, tell.
fn vlan_above(classes: &Path, interface: &str) -> Option<String> {
    let links = fs::read_dir(classes.join(interface)).ok()?;
    links.flatten().find_map(|link| {
        let name = link.file_name().into_string().ok()?;
        let upper = name.strip_prefix("upper_")?;
        let told = fs::read_to_string(classes.join(upper).join("uevent")).ok()?;
        let is_vlan = told.lines().any(|line| line == "DEVTYPE=vlan");
        is_vlan.then(|| upper.to_owned())
    })
}

fn attach_xdp(program: &mut Xdp, links: &Path, interface: &str) -> Result<()> {
    let path = pin(links, XDP, interface);
    let context = || format!("attach {XDP} to {interface}");
    if let Some(old) = pinned(&path)? {
        let link = XdpLink::try_from(FdLink::from(old)).map_err(anyhow::Error::from);
        let replaced = link.and_then(|link| Ok(program.attach_to_link(link)?));
        match replaced {
            Ok(id) => {
                // The pin stays; the replaced link is its second owner only.
                drop(program.take_link(id)?);
                return Ok(());
            }
            Err(error) => stale(&path, &error)?,
        }
    }
    let id = program
        .attach(interface, XdpMode::Driver)
        .with_context(context)?;
    let link: FdLink = program.take_link(id)?.try_into().with_context(context)?;
    link.pin(&path)
        .with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Attaches a TC program and returns the path of its link's pin (which clsact does not make).
pub fn attach_tc(
    ebpf: &mut Ebpf,
    links: &Path,
    name: &str,
    interface: &str,
    direction: TcAttachType,
) -> Result<PathBuf> {
    let program = classifier(ebpf, name)?;
    let path = pin(links, name, interface);
    let context = || format!("attach {name} to {interface}");
    if !has_tcx()? {
        attach_clsact(program, clsact_handle(name), interface, direction).with_context(context)?;
        return Ok(path);
    }
    if let Some(old) = pinned(&path)? {
        let link = SchedClassifierLink::try_from(FdLink::from(old)).map_err(anyhow::Error::from);
        let replaced = link.and_then(|link| Ok(program.attach_to_link(link)?));
        match replaced {
            Ok(id) => {
                drop(program.take_link(id)?);
                return Ok(path);
            }
            Err(error) => stale(&path, &error)?,
        }
    }
    // First of all: what another program steered or dropped before, memlb would not see.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(interface, direction, order)
        .with_context(context)?;
    let link: FdLink = program.take_link(id)?.try_into().with_context(context)?;
    link.pin(&path)
        .with_context(|| format!("pin {}", path.display()))?;
    Ok(path)
}

/// tcx came with Linux 6.6 (e420bed02507); `MEMLB_NO_TCX=1` does without, as on older kernels.
fn has_tcx() -> Result<bool> {
    Ok(std::env::var_os("MEMLB_NO_TCX").is_none() && kernel::is_at_least(6, 6)?)
}

/// Attaches by a netlink filter, which stays when this process ends; one of the same priority and
/// handle is replaced in place.
fn attach_clsact(
    program: &mut SchedClassifier,
    handle: u32,
    interface: &str,
    direction: TcAttachType,
) -> Result<()> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {}
        // It is there already.
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

/// Handle of a program's filters: a manager and a companion may be on one machine.
fn clsact_handle(name: &str) -> u32 {
    if [DSR_IN, DSR_OUT].contains(&name) {
        2
    } else {
        1
    }
}

/// Removes the manager's clsact filters from all interfaces; says whether there were any.
pub fn detach_clsact() -> Result<bool> {
    detach_filters(&[
        (INGRESS, TcAttachType::Ingress),
        (EGRESS, TcAttachType::Egress),
        (LOOPBACK, TcAttachType::Egress),
    ])
}

/// The same of a companion's.
pub fn detach_companion_clsact() -> Result<bool> {
    detach_filters(&[
        (DSR_IN, TcAttachType::Ingress),
        (DSR_OUT, TcAttachType::Egress),
    ])
}

/// The queueing discipline itself stays: it does nothing by itself, and others may use it by now.
fn detach_filters(programs: &[(&str, TcAttachType)]) -> Result<bool> {
    let mut found = false;
    for interface in nix::net::if_::if_nameindex()
        .context("list the interfaces")?
        .iter()
    {
        let interface = interface.name().to_string_lossy();
        for &(name, direction) in programs {
            // An interface without clsact has nothing to detach.
            found |= tc::qdisc_detach_program(&interface, direction, name).is_ok();
        }
    }
    Ok(found)
}

pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the kernel programs have no {name}"))?;
    Ok(program.try_into()?)
}

/// Path of the pin of a program's link to an interface; bpffs allows no dot in a name.
pub fn pin(links: &Path, program: &str, interface: &str) -> PathBuf {
    links.join(format!("{program}@{}", interface.replace('.', "%2e")))
}

/// Returns the interface that a pin of this program's link is named after.
pub fn interface_of_pin(name: &str, program: &str) -> Option<String> {
    let interface = name.strip_prefix(program)?.strip_prefix('@')?;
    Some(interface.replace("%2e", "."))
}

fn pinned(path: &Path) -> Result<Option<PinnedLink>> {
    if !path.exists() {
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

/// A pinned link that takes no program any more: its interface is gone, or was made anew.
fn stale(path: &Path, error: &anyhow::Error) -> Result<()> {
    info!("{} is stale ({error:#}): attaching anew", path.display());
    remove_pin(path)
}

fn remove_pin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Detaches what an earlier manager attached elsewhere.
pub fn remove_others(links: &Path, kept: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(links).with_context(|| format!("list {}", links.display()))? {
        let path = entry
            .with_context(|| format!("list {}", links.display()))?
            .path();
        if !kept.contains(&path) {
            warn!(
                "detaching {}, which is no longer configured",
                path.display()
            );
            remove_pin(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{INGRESS, interface_of_pin, pin, vlan_above};

    #[test]
    fn a_pin_is_named_after_its_interface() {
        let path = pin(Path::new("links"), INGRESS, "eth1.7");
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        assert_eq!(interface_of_pin(name, INGRESS).as_deref(), Some("eth1.7"));
        assert_eq!(interface_of_pin("memlb_egress@eth1", INGRESS), None);
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
