//! Attachments to all interfaces: attached at start, renamed with the interface, and restored when another program
//! detaches them.

use std::{
    collections::BTreeSet,
    fmt, fs,
    mem::take,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_core::{Endpoint, Event};
use tracing::debug;

use super::{
    announcement::Announcement,
    attach::{
        self, AttachMode, EGRESS, INGRESS, LOOPBACK, LOOPBACK_PROGRAMS, Program, TC_PROGRAMS, XDP,
    },
    bpffs::LINKS,
    foreign_programs::{ForeignPrograms, other_managers, served},
    interface::{Interface, InterfaceRef, index_of, name_of},
    links::Links,
    netlink_query,
    precedence::preceding,
    upstream::{UpstreamManager, upstream_managers},
};
use crate::config::Attach;

/// An interface and its programs.
#[derive(Debug)]
pub struct Attachment {
    /// Its present own name.
    pub interface: String,
    pub mode: AttachMode,
    /// Why this mode.
    pub reason: String,
    /// `None` while the interface is gone.
    pub index: Option<u32>,
    /// Programs that are not attached and cannot be attached again.
    pub missing: Vec<&'static str>,
    /// Programs of another memlb that receive the packets first and may serve the same addresses.
    pub preceding: Vec<String>,
    /// The name in the configuration; `None` once another interface has that name.
    configured: Option<String>,
    programs: Vec<Program>,
    /// Whether the interface has returned and is not attached yet.
    is_new: bool,
    /// Announces this manager to others, once it is attached.
    announcement: Option<Announcement>,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            interface,
            mode,
            reason,
            ..
        } = self;
        write!(f, "attached to {interface} by {}: {reason}", mode.name())
    }
}

/// All attachments.
#[derive(Debug)]
pub struct Attachments {
    /// Where the links are pinned.
    links: PathBuf,
    loopback: Attachment,
    interfaces: Vec<Attachment>,
}

impl Attachments {
    /// Attaches to every interface and to `lo`, replacing programs of an earlier manager.
    ///
    /// # Errors
    ///
    /// Names program and interface.
    pub fn start(
        ebpf: &mut Ebpf,
        pin_path: &Path,
        requested: Attach,
        interfaces: &[Interface],
    ) -> Result<Self> {
        let links = pin_path.join(LINKS);
        fs::create_dir_all(&links).with_context(|| format!("create {}", links.display()))?;
        attach::load_classifiers(ebpf, &[INGRESS, EGRESS, LOOPBACK])?;
        attach::rename_pins(&links)?;
        let loopback = Attachment {
            programs: LOOPBACK_PROGRAMS.to_vec(),
            ..Attachment::new(
                "lo",
                lb_common::maps::LOOPBACK,
                AttachMode::Tc,
                String::new(),
            )
        };
        for (target, program) in loopback.target().into_iter().zip(LOOPBACK_PROGRAMS) {
            attach::attach(ebpf, &links, program, target)?;
        }
        for interface in interfaces {
            for program in TC_PROGRAMS {
                attach::attach(ebpf, &links, program, interface.target())?;
            }
        }
        let (mode, reasons) = attach::choose_mode(ebpf, &links, requested, interfaces)?;
        let named = interfaces.iter().zip(reasons);
        let attachments = Self {
            loopback,
            interfaces: named
                .map(|(it, reason)| Attachment::new(&it.name, it.index, mode, reason))
                .collect(),
            links,
        };
        attach::remove_unlisted_pins(&attachments.links, &attachments.pins())?;
        Ok(attachments)
    }

    /// The expected pins of links.
    fn pins(&self) -> Vec<PathBuf> {
        let pins = |it: &Attachment| {
            let pin = |(program, _): &Program| attach::pin(&self.links, program, &it.interface);
            it.programs.iter().map(pin).collect::<Vec<_>>()
        };
        let all = [&self.loopback].into_iter().chain(&self.interfaces);
        all.flat_map(pins).collect()
    }

    pub fn interfaces(&self) -> &[Attachment] {
        &self.interfaces
    }

    /// The attachments to report: configured interfaces, and `lo` if its program is missing.
    pub fn reportable(&self) -> impl Iterator<Item = &Attachment> {
        let loopback = Some(&self.loopback).filter(|it| !it.missing.is_empty());
        self.interfaces.iter().chain(loopback)
    }

    /// Checks existence and name of every interface, and attaches missing programs.
    pub fn reconcile(&mut self, ebpf: &mut Ebpf) -> Vec<Event> {
        let mut changes = Vec::new();
        for attachment in &mut self.interfaces {
            changes.extend(attachment.refresh_name());
        }
        let is_renamed = |it: &Event| matches!(it, Event::InterfaceRenamed { .. });
        if changes.iter().any(is_renamed)
            && let Err(error) = attach::rename_pins(&self.links)
        {
            let links = self.links.display().to_string();
            changes.push(not_attached(links, &error));
        }
        changes.extend(self.attach_namesakes());
        let all = [&mut self.loopback].into_iter().chain(&mut self.interfaces);
        changes.extend(all.filter_map(|it| it.restore(ebpf, &self.links)));
        self.interfaces.iter_mut().for_each(Attachment::announce);
        match OtherManagers::find(&self.links) {
            Ok(others) => {
                let interfaces = self.interfaces.iter_mut();
                changes.extend(interfaces.filter_map(|it| it.refresh_preceding(&others)));
            }
            Err(error) => debug!("{error:#}"),
        }
        // Do not wait for an interface whose name another one has.
        let is_awaited = |it: &Attachment| it.index.is_some() || it.configured.is_some();
        self.interfaces.retain(is_awaited);
        changes
    }

    /// Finds interfaces that now have a configured name and are not attached yet.
    fn attach_namesakes(&mut self) -> Vec<Event> {
        let mut changes = Vec::new();
        for position in 0..self.interfaces.len() {
            let attachment = &self.interfaces[position];
            let Some(name) = attachment.configured.clone() else {
                continue;
            };
            let Some(index) = index_of(&name) else {
                continue;
            };
            if self.interfaces.iter().any(|it| it.index == Some(index)) {
                continue;
            }
            let interface = name_of(index).unwrap_or_else(|| name.clone());
            if attachment.index.is_none() {
                let attachment = &mut self.interfaces[position];
                attachment.index = Some(index);
                attachment.interface = interface;
                attachment.is_new = true;
                continue;
            }
            let namesake = Attachment {
                is_new: true,
                configured: Some(name),
                ..Attachment::new(
                    &interface,
                    index,
                    attachment.mode,
                    attachment.reason.clone(),
                )
            };
            changes.push(Event::InterfaceReplaced {
                interface,
                former: attachment.interface.clone(),
            });
            self.interfaces[position].configured = None;
            self.interfaces.push(namesake);
        }
        changes
    }
}

impl Attachment {
    fn new(name: &str, index: u32, mode: AttachMode, reason: String) -> Self {
        let xdp = (mode == AttachMode::Xdp).then_some((XDP, None));
        Self {
            interface: name.to_owned(),
            mode,
            reason,
            index: Some(index),
            missing: Vec::new(),
            preceding: Vec::new(),
            configured: Some(name.to_owned()),
            programs: TC_PROGRAMS.into_iter().chain(xdp).collect(),
            is_new: false,
            announcement: None,
        }
    }

    /// Announces this manager at the interface's present index.
    fn announce(&mut self) {
        let known = self.announcement.as_ref().map(|it| it.interface);
        if known == self.index {
            return;
        }
        self.announcement = None;
        match self.index.map(Announcement::new).transpose() {
            Ok(announcement) => self.announcement = announcement,
            Err(error) => debug!("announce this manager at {}: {error}", self.interface),
        }
    }

    fn target(&self) -> Option<InterfaceRef<'_>> {
        Some(InterfaceRef {
            index: self.index?,
            name: &self.interface,
        })
    }

    /// Checks existence and name of the interface.
    fn refresh_name(&mut self) -> Option<Event> {
        let name = name_of(self.index?);
        match name {
            None => {
                self.index = None;
                self.missing.clear();
                let interface = self.interface.clone();
                Some(Event::InterfaceRemoved { interface })
            }
            Some(name) if name == self.interface => None,
            Some(name) => Some(Event::InterfaceRenamed {
                was: std::mem::replace(&mut self.interface, name.clone()),
                interface: name,
            }),
        }
    }

    /// Checks whether programs of another memlb receive the packets first. Returns an event if that begins or ends.
    fn refresh_preceding(&mut self, others: &OtherManagers) -> Option<Event> {
        let target = self.target();
        let found = target.map(|it| others.preceding(it, self.mode));
        let (programs, manager) = match found.transpose() {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => {
                debug!("{error:#}");
                return None;
            }
        };
        let before = std::mem::replace(&mut self.preceding, programs);
        let interface = self.interface.clone();
        match (before.is_empty(), self.preceding.is_empty()) {
            (true, false) => Some(Event::OtherManagerFirst {
                interface,
                programs: self.preceding.clone(),
                manager,
            }),
            (false, true) => Some(Event::OtherManagerGone { interface }),
            _ => None,
        }
    }

    /// Attaches missing programs.
    fn restore(&mut self, ebpf: &mut Ebpf, links: &Path) -> Option<Event> {
        let target = self.target()?;
        let mut missing = Vec::new();
        let mut restored = Vec::new();
        let mut failure = None;
        for program in &self.programs {
            let outcome = match attach::is_attached(links, *program, target) {
                Ok(true) => continue,
                Ok(false) => attach::attach(ebpf, links, *program, target),
                // Do not attach a program that may be attached.
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => restored.push(program.0),
                Err(error) => {
                    missing.push(program.0);
                    failure = Some(error);
                }
            }
        }
        let is_known = !std::mem::replace(&mut self.missing, missing).is_empty();
        let interface = self.interface.clone();
        match failure {
            Some(error) if !is_known => Some(not_attached(interface, &error)),
            Some(_) => None,
            None if take(&mut self.is_new) => Some(Event::InterfaceRestored { interface }),
            None if restored.is_empty() => None,
            None => Some(Event::ProgramsRestored {
                interface,
                programs: restored,
            }),
        }
    }
}

fn not_attached(interface: String, error: &anyhow::Error) -> Event {
    let error = format!("{error:#}");
    Event::InterfaceNotAttached { interface, error }
}

/// The other managers of this machine, read once for all interfaces. Without any, only `links` is set.
#[derive(Default)]
struct OtherManagers {
    /// Where this manager's links are pinned.
    links: PathBuf,
    own_services: BTreeSet<Endpoint>,
    managers: Vec<ForeignPrograms>,
    interfaces: Links,
}

impl OtherManagers {
    fn find(links: &Path) -> Result<Self> {
        let pin_path = links.parent().unwrap_or(links);
        let managers = other_managers(pin_path);
        let mut others = Self {
            links: links.to_owned(),
            ..Self::default()
        };
        if !managers.is_empty() {
            others.own_services = served(pin_path).unwrap_or_default();
            others.interfaces = netlink_query::links()?;
            others.managers = managers;
        }
        Ok(others)
    }

    /// The programs of other managers that steer packets to an interface before this manager's, and the pins of one.
    fn preceding(
        &self,
        target: InterfaceRef<'_>,
        mode: AttachMode,
    ) -> Result<(Vec<String>, String)> {
        let programs = preceding(&self.links, target, mode)?;
        let managers = self.managers.iter();
        let here = managers.filter(|it| it.interfaces.contains(target.name));
        let here: Vec<&ForeignPrograms> = here.collect();
        if !programs.is_empty() && !self.serve_other_addresses(&here, target.name) {
            let manager = match here.first() {
                Some(manager) => manager.origin(),
                None => "its pins are not visible to this manager".to_owned(),
            };
            return Ok((programs, manager));
        }
        let locations = self.interfaces.upstream_of(target.index);
        let upstream = upstream_managers(&self.managers, &locations, &self.own_services)?;
        let manager = upstream.first().map(UpstreamManager::origin);
        let programs = upstream.iter().map(UpstreamManager::programs);
        Ok((programs.collect(), manager.unwrap_or_default()))
    }

    /// Whether all managers whose programs receive the packets of an interface first serve other addresses than this
    /// one. Two managers may share an interface.
    fn serve_other_addresses(&self, here: &[&ForeignPrograms], interface: &str) -> bool {
        let first = here.iter().filter(|it| it.first_at.contains(interface));
        let mut first = first.peekable();
        // A manager that is starting serves nothing yet.
        let is_disjoint = |it: &&ForeignPrograms| {
            let services = it.services.as_ref();
            services.is_some_and(|services| services.is_disjoint(&self.own_services))
        };
        first.peek().is_some() && first.all(is_disjoint)
    }
}
