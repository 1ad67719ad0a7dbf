//! A worker's DSR translator: lets the worker's own server reply to clients of services of mode `dsr` directly.
//!
//! Its programs and maps are pinned and work without the agent; the next agent adopts them. An agent that stops
//! removes them, unless connections are open.

mod mapping;
mod ownership;
mod tables;

pub use mapping::{DsrMapping, InvalidDsrMapping};

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lb_common::maps::{DSR_MAPS, MapLayout, dsr_name};
use lb_core::Endpoint;
use tracing::{debug, info, warn};

use super::{
    attach::{self, DSR_IN, DSR_OUT, DSR_PROGRAMS},
    bpffs::{self, LINKS},
    interface::Interface,
    kernel, layout,
    netlink::{Netlink, Routes},
    pins::Pins,
};
use tables::DsrTables;

/// The ELF object with the DSR translator's programs and maps.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("MEMLB_DSR_OBJECT"));

/// Default pin directory.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/memlb-agent";

/// Settings of a DSR translator.
#[derive(Debug, Clone)]
pub struct DsrSettings {
    pub mappings: Vec<DsrMapping>,
    /// Interfaces to attach to, in addition to those of the routes to the services.
    pub interfaces: Vec<String>,
    pub pin_path: PathBuf,
}

/// The attached programs and their maps.
#[derive(Debug)]
pub struct DsrTranslator {
    ebpf: Ebpf,
    tables: DsrTables,
    netlink: Netlink,
    settings: DsrSettings,
    /// Attached interfaces by index, with their last known names.
    attached: BTreeMap<u32, String>,
    pins: Pins,
    /// The services that are translated now.
    translated: BTreeSet<Endpoint>,
    /// Known problems, so that each is logged once.
    problems: BTreeSet<String>,
    _lock: bpffs::Lock,
}

impl DsrTranslator {
    /// Loads the programs with new maps or with those of an earlier agent, and attaches them. [`Self::reconcile`]
    /// retries services that cannot be translated yet, for example without a route.
    ///
    /// # Errors
    ///
    /// Names what is missing (privileges, kernel, BPF file system), or says that another agent holds the pins.
    pub async fn start(settings: DsrSettings) -> Result<Self> {
        kernel::check().context("--dsr loads kernel programs")?;
        let pin_path = &settings.pin_path;
        let acquire = || {
            bpffs::ensure(pin_path)?;
            bpffs::Lock::acquire(pin_path, "another memlb agent with --dsr", "stop it first")
        };
        let mut lock = acquire()?;
        if let Err(difference) = layout::check_dsr(pin_path) {
            info!("replacing a DSR translator of another version: {difference:#}");
            bpffs::remove(pin_path)
                .with_context(|| format!("remove the pins at {}", pin_path.display()))?;
            lock = acquire()?;
        }
        let mut loader = EbpfLoader::new();
        for MapLayout { name, .. } in DSR_MAPS {
            loader.map_pin_path(name, pin_path.join(name));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .context("load the DSR translator and its maps")?;
        attach::load_classifiers(&mut ebpf, &[DSR_IN, DSR_OUT])?;
        let links = pin_path.join(LINKS);
        fs::create_dir_all(&links).with_context(|| format!("create {}", links.display()))?;
        let mut translator = Self {
            tables: DsrTables::from_ebpf(&mut ebpf)?,
            ebpf,
            pins: Pins::open(pin_path)?,
            netlink: Netlink::connect_without_events()?,
            settings,
            attached: BTreeMap::new(),
            translated: BTreeSet::new(),
            problems: BTreeSet::new(),
            _lock: lock,
        };
        translator.reconcile().await;
        Ok(translator)
    }

    /// The services that are translated now.
    pub fn translated_services(&self) -> Vec<Endpoint> {
        self.translated.iter().copied().collect()
    }

    /// Checks routes, attachments and pins, and restores them. May change which services are translated.
    pub async fn reconcile(&mut self) {
        match self.pins.restore() {
            Ok(pins) if pins.is_empty() => {}
            Ok(pins) => warn!(
                "another program removed the pins of {}: they are restored",
                pins.join(", ")
            ),
            Err(error) => debug!("{error:#}"),
        }
        let mappings = self.settings.mappings.iter();
        let services = mappings.map(|it| it.service.address.ip()).collect();
        match self.netlink.routes(&services).await {
            Ok(routes) => self.apply_routes(&routes).await,
            // Keep the present state.
            Err(error) => {
                let translated = self.translated.clone();
                self.report(translated, [format!("{error:#}")].into());
                if let Ok(netlink) = Netlink::connect_without_events() {
                    self.netlink = netlink;
                }
            }
        }
    }

    async fn apply_routes(&mut self, routes: &Routes) {
        let mut problems = BTreeSet::new();
        let mut targets = BTreeMap::new();
        let mut interfaces: BTreeSet<String> = self.settings.interfaces.iter().cloned().collect();
        for mapping in &self.settings.mappings {
            match mapping.target(routes) {
                Ok((interface, target)) => {
                    interfaces.insert(interface);
                    targets.insert(mapping.service, target);
                }
                Err(error) => {
                    problems.insert(format!("{error:#}"));
                }
            }
        }
        let mut attached = true;
        if let Err(error) = self.attach(&interfaces).await {
            attached = false;
            problems.insert(format!("{error:#}"));
        }
        let mut outcome = self.translate(&targets);
        if outcome.is_ok() && problems.is_empty() {
            outcome = self.detach_unused();
        }
        if let Err(error) = outcome {
            attached = false;
            problems.insert(format!("{error:#}"));
        }
        let translated = targets.into_keys().filter(|_| attached).collect();
        self.report(translated, problems);
    }

    /// Writes the translations. Services without a route keep theirs.
    fn translate(&mut self, targets: &BTreeMap<Endpoint, SocketAddr>) -> Result<()> {
        for mapping in &self.settings.mappings {
            self.tables.track_server(mapping.service, mapping.port)?;
        }
        for (service, target) in targets {
            self.tables.translate(*service, *target)?;
        }
        let mappings = self.settings.mappings.iter();
        self.tables
            .retain(&mappings.map(|mapping| mapping.service).collect())
    }

    /// Attaches missing programs to the interfaces of these names.
    async fn attach(&mut self, names: &BTreeSet<String>) -> Result<()> {
        let links = self.netlink.links().await?;
        let mut interfaces = Vec::new();
        let mut outcome = Ok(());
        for name in names {
            match links.interface(name) {
                Ok(interface) => interfaces.push(interface),
                Err(error) => outcome = Err(error),
            }
        }
        if attach::rename_pins(&self.settings.pin_path.join(LINKS))? {
            self.pins.open_links()?;
        }
        for Interface { index, name, .. } in &interfaces {
            if let Some(known) = self.attached.get_mut(index) {
                known.clone_from(name);
            }
        }
        for interface in &interfaces {
            outcome = outcome.and(self.attach_to(interface));
        }
        self.attached
            .retain(|index, _| interfaces.iter().any(|it| it.index == *index));
        outcome
    }

    fn attach_to(&mut self, interface: &Interface) -> Result<()> {
        let links = self.settings.pin_path.join(LINKS);
        fs::create_dir_all(&links).with_context(|| format!("create {}", links.display()))?;
        let mut restored = Vec::new();
        for program in DSR_PROGRAMS {
            let is_known = self.attached.contains_key(&interface.index);
            if is_known && attach::is_attached(&links, program, interface.target())? {
                continue;
            }
            attach::attach(&mut self.ebpf, &links, program, interface.target())?;
            restored.push(program.0);
        }
        if restored.is_empty() {
            return Ok(());
        }
        self.pins.open_links()?;
        let Interface { index, name, .. } = interface;
        match self.attached.insert(*index, name.clone()) {
            None => info!("the DSR translator is attached to {name}"),
            Some(_) => warn!(
                "another program detached {} from interface {name}: attached again; find out which program \
                 does that (tc, bpftool, another agent)",
                restored.join(", ")
            ),
        }
        Ok(())
    }

    /// Detaches programs from interfaces that are no longer used.
    fn detach_unused(&mut self) -> Result<()> {
        let links = self.settings.pin_path.join(LINKS);
        if self.attached.is_empty() {
            return Ok(());
        }
        let names = self.attached.values();
        let kept: Vec<PathBuf> = names
            .flat_map(|name| DSR_PROGRAMS.map(|(program, _)| attach::pin(&links, program, name)))
            .collect();
        if attach::remove_unlisted_pins(&links, &kept)? {
            self.pins.open_links()?;
        }
        Ok(())
    }

    fn report(&mut self, translated: BTreeSet<Endpoint>, problems: BTreeSet<String>) {
        for problem in problems.difference(&self.problems) {
            warn!("{problem}; trying again");
        }
        for service in translated.difference(&self.translated) {
            info!("clients of {service} are answered directly");
        }
        for service in self.translated.difference(&translated) {
            warn!("clients of {service} are no longer answered directly");
        }
        self.problems = problems;
        self.translated = translated;
    }

    /// Removes the DSR translator, or leaves it in place while connections are open.
    ///
    /// # Errors
    ///
    /// Names what could not be read or removed.
    pub fn shut_down(self) -> Result<()> {
        let open = self.tables.open_connections()?;
        let pin_path = &self.settings.pin_path;
        if open > 0 {
            info!(
                "the DSR translator stays for {open} open connections: the next agent adopts it, and \
                 `memlb unload --agent` removes it"
            );
            return Ok(());
        }
        remove(pin_path)?;
        info!("the DSR translator is removed");
        Ok(())
    }
}

/// Detaches a DSR translator's programs and removes its pins; returns whether there were any.
///
/// # Errors
///
/// Says what could not be removed, or that an agent still runs.
pub fn unload(pin_path: &Path) -> Result<bool> {
    kernel::check_privileges()?;
    if !pin_path.exists() {
        return attach::detach_clsact(&DSR_PROGRAMS);
    }
    bpffs::check(pin_path)?;
    if !pin_path.join(dsr_name::TRANSLATIONS).exists() {
        bail!(
            "{} does not hold a DSR translator's pins",
            pin_path.display()
        );
    }
    let remedy = "stop the agent first (systemctl stop memlb-agent); nothing was removed";
    let _lock = bpffs::Lock::acquire(pin_path, "a running memlb agent", remedy)?;
    remove(pin_path)?;
    Ok(true)
}

fn remove(pin_path: &Path) -> Result<()> {
    attach::detach_clsact(&DSR_PROGRAMS)?;
    bpffs::remove(pin_path).with_context(|| format!("remove the pins at {}", pin_path.display()))
}
