//! The manager's access to programs and maps: loads, attaches, pins, adopts and writes them.
//!
//! Only [`Datapath`] writes maps that steer packets, and only the manager's main task owns one.

pub(crate) mod adopt;
mod announcement;
mod attach;
mod attachments;
mod backend_state;
mod bpf_call;
pub(crate) mod bpffs;
mod capacity;
mod choice_table;
mod client_counts;
mod clock;
mod connection_counts;
mod deny_map;
pub mod dsr;
mod family;
mod flows;
mod foreign_programs;
mod interface;
pub(crate) mod kernel;
mod layout;
mod link_info;
mod links;
mod loopback;
mod map_batch;
pub(crate) mod named_map;
mod netlink;
mod netlink_query;
mod object;
mod own_links;
mod peer;
mod pins;
mod pool_layout;
mod precedence;
mod protocol;
mod source_filter;
mod stats;
mod tables;
mod trace;
mod upstream;

pub use adopt::{Adoption, service_ids};
pub use attach::AttachMode;
pub(crate) use attach::{unsuited_to_xdp, xdp_drawback};
pub use attachments::Attachment;
pub use connection_counts::reconcile_connection_counts;
pub use deny_map::end_connections;
pub use flows::{Connection, ConnectionState, read_connections};
pub use foreign_programs::{ForeignPrograms, conflicts, foreign_programs};
pub use interface::Interface;
pub(crate) use interface::{link_addresses, name_of};
pub use layout::LayoutError;
pub use links::Links;
pub use map_batch::lookup_batch;
pub use netlink::{Neighbour, Netlink, NetlinkChange, Route, Routes};
pub use object::OBJECT;
pub use peer::{
    FlowEvents, FlowScan, Intake, IntakeOutcome, PeerTables, ReplicationTables, UnknownClients,
    parse_event,
};
pub use pins::Pins;
pub use stats::{BackendTraffic, MapFill, Packets, Stats};
pub use trace::KernelTrace;
pub use upstream::upstream_conflicts;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use lb_common::maps::{SPREAD, Service, Traffic, mode, name, service_flag, state};
use lb_core::{
    BackendId, CoreSettings, Event, Health, MapUpdate, Mode, ReplyCounters, ServiceId,
    ServiceSettings, TrafficCounters, WorkerRoute,
};
use tracing::{debug, info, warn};

use crate::{
    addresses,
    config::{Config, Identity, PinnedIds, identities},
    deny::Prefix,
};
use announcement::ServiceAnnouncements;
use attachments::Attachments;
use backend_state::{BackendState, initial_backends, is_at, replace_backends};
pub(crate) use clock::monotonic_ns;
use deny_map::DenyMap;
pub(crate) use family::{from_mapped, mapped};
use foreign_programs::announced_conflict;
use own_links::OwnLinks;
pub(crate) use protocol::{protocol_number, protocol_of};
use source_filter::expected_interfaces;
use tables::{PersistentSettings, Tables};

/// The attached programs and their maps.
#[derive(Debug)]
pub struct Datapath {
    /// The loaded programs, for attaching them again.
    ebpf: Ebpf,
    tables: Tables,
    backends: BTreeMap<BackendId, BackendState>,
    /// The workers' counters when they were read last.
    sampled: BTreeMap<BackendId, Traffic>,
    attachments: Attachments,
    own_links: OwnLinks,
    pin_path: PathBuf,
    rollback: RollbackGuard,
    deny: DenyMap,
    /// Backends that are no longer configured, but still have connections.
    retiring: BTreeSet<u32>,
    /// Identities of all backends that were configured in this process and may have connections. The maps do not hold
    /// the service of a backend whose service was removed.
    identities: BTreeMap<BackendId, Identity>,
    /// Number of changes of the configuration. Counts from before the last change are stale.
    generation: u64,
    /// Announces this manager's services to other managers.
    announcements: ServiceAnnouncements,
    /// Held while this manager writes the maps.
    _lock: bpffs::Lock,
}

/// A locked pin directory and its contents.
#[derive(Debug)]
pub struct PreparedPins {
    pub adoption: Adoption,
    pin_path: PathBuf,
    rollback: RollbackGuard,
    lock: bpffs::Lock,
}

/// Undoes the first start with these pins, if dropped before the start has succeeded.
#[derive(Debug)]
struct RollbackGuard {
    /// `None`: nothing to undo.
    pin_path: Option<PathBuf>,
    accept_local_before: Option<u32>,
}

impl Drop for RollbackGuard {
    fn drop(&mut self) {
        let Some(pin_path) = &self.pin_path else {
            return;
        };
        // Best effort: the first error is reported.
        _ = detach_clsact();
        if let Some(before) = self.accept_local_before {
            _ = loopback::set_accept_local(before);
        }
        _ = bpffs::remove(pin_path);
    }
}

/// Detaches the manager's clsact filters; returns whether there were any.
fn detach_clsact() -> Result<bool> {
    attach::detach_clsact(&[attach::TC_PROGRAMS.as_slice(), &attach::LOOPBACK_PROGRAMS].concat())
}

/// Checks the machine, creates and locks the pin directory, and reads the pins.
///
/// # Errors
///
/// Says what is missing (privileges, kernel, BPF file system), that another manager holds the pins, or that they have
/// another layout.
pub fn prepare(config: &Config) -> Result<PreparedPins> {
    kernel::check()?;
    let pin_path = config.manager.pin_path.clone();
    let is_first = bpffs::ensure(&pin_path)?;
    let lock = bpffs::Lock::acquire(
        &pin_path,
        "another memlb manager",
        "stop it first, or give this one another manager.pin_path",
    )?;
    let rollback = RollbackGuard {
        pin_path: is_first.then(|| pin_path.clone()),
        accept_local_before: None,
    };
    let adoption = adopt::read(&pin_path)?;
    let mut conflicts = conflicts(config).into_iter();
    if let Some(conflict) = conflicts.next().or_else(|| announced_conflict(config)) {
        bail!("{conflict}");
    }
    capacity::adapt_pins(&pin_path, config)?;
    Ok(PreparedPins {
        adoption,
        pin_path,
        rollback,
        lock,
    })
}

impl Datapath {
    /// Loads the programs into the pinned maps and attaches them to every configured interface.
    /// Backends and selections come afterwards, through [`Self::apply`], and [`Self::publish_services`] last.
    ///
    /// # Errors
    ///
    /// Names the interface or program that failed. Until [`Self::publish_services`] has succeeded, dropping the
    /// datapath undoes the start.
    pub fn start(
        prepared: PreparedPins,
        config: &Config,
        settings: &CoreSettings,
        interfaces: &[Interface],
    ) -> Result<Self> {
        let PreparedPins {
            adoption: _,
            pin_path,
            mut rollback,
            lock,
        } = prepared;
        let mut ebpf = object::load(&pin_path, config, interfaces)?;
        let mut tables = Tables::from_ebpf(&mut ebpf, config)?;
        let deny = DenyMap::from_ebpf(&mut ebpf)?;
        let persistent = match adopt::previous_settings(&pin_path) {
            Some(earlier) => PersistentSettings {
                accept_local_before: earlier.accept_local_before,
                secret: earlier.secret,
            },
            None => PersistentSettings {
                accept_local_before: loopback::accept_local()?,
                secret: secret()?,
            },
        };
        tables.write_settings(config, persistent)?;
        rollback.accept_local_before = Some(persistent.accept_local_before);
        loopback::set_accept_local(1)?;
        let attachments =
            Attachments::start(&mut ebpf, &pin_path, config.manager.attach, interfaces)?;
        for attachment in attachments.interfaces() {
            info!("{attachment}");
        }
        let mut own_links = OwnLinks::from_ebpf(&mut ebpf)?;
        own_links.update(attachments.interfaces())?;
        let backends = initial_backends(settings);
        Ok(Self {
            ebpf,
            tables,
            backends,
            sampled: BTreeMap::new(),
            attachments,
            own_links,
            pin_path,
            rollback,
            deny,
            retiring: BTreeSet::new(),
            identities: identities(settings).collect(),
            generation: 0,
            announcements: ServiceAnnouncements::default(),
            _lock: lock,
        })
    }

    /// Returns the ids in use. A changed configuration keeps them.
    ///
    /// # Errors
    ///
    /// Names the map that could not be read.
    pub fn pinned_ids(&self) -> Result<PinnedIds> {
        let mut pinned = adopt::read(&self.pin_path)?.pinned;
        for (id, identity) in &mut pinned.backends {
            if let Some(known) = self.identities.get(id) {
                *identity = *known;
            }
        }
        Ok(pinned)
    }

    /// Replaces the backends by those of a changed configuration. Backends that stay keep their state. The core's
    /// updates follow, and [`Self::publish_services`] last.
    pub fn prepare_reload(&mut self, settings: &CoreSettings, ids: &PinnedIds) {
        self.backends = replace_backends(&self.backends, settings, ids);
        self.identities.extend(identities(settings));
        self.generation += 1;
    }

    /// Number of backends that are no longer configured and may have connections.
    pub fn retiring(&self) -> usize {
        self.retiring.len()
    }

    /// The generation to pass to [`Self::sweep`] with counts that begin now.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Removes backends that are not configured and have no connections. Ignores counts of another `generation`,
    /// because a backend may have been removed since, with connections that are not in the counts.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn sweep(&mut self, stats: &Stats, generation: u64) -> Result<()> {
        if generation != self.generation {
            return Ok(());
        }
        let unused: Vec<u32> = self.retiring.difference(&stats.occupied).copied().collect();
        for id in &unused {
            self.tables.clear_backend(*id)?;
            self.tables.clear_neighbour(*id)?;
            self.retiring.remove(id);
            self.identities.remove(&BackendId(*id));
        }
        match unused.is_empty() {
            true => Ok(()),
            false => self.tables.drop_unused_pools(),
        }
    }

    /// Applies one of the core's updates.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn apply(&mut self, update: MapUpdate) -> Result<()> {
        match update {
            MapUpdate::SetBackend {
                backend,
                state,
                memory,
                weight,
            } => {
                let Some(known) = self.backends.get_mut(&backend) else {
                    return Ok(());
                };
                let returned = known.health.is_some_and(|before| !before.is_up()) && state.is_up();
                known.health = Some(state);
                known.memory = memory;
                known.weight = weight;
                if returned {
                    self.tables.clear_neighbour(backend.0)?;
                }
                self.write_backend(backend)
            }
            MapUpdate::Select { service, backend } => {
                self.tables.selection.set(service.0, backend.0)
            }
            MapUpdate::SetSlots {
                service,
                kind,
                slots,
            } => {
                let ids: Vec<u32> = slots.iter().map(|backend| backend.0).collect();
                let mut backends = self.backends.iter();
                let fallback = backends.find(|(_, it)| it.is_fallback && it.service == service.0);
                let fallback = fallback.map_or(0, |(id, _)| id.0);
                let choices = &mut self.tables.choices;
                choices.replace(service.0, kind as u32, &ids, fallback)
            }
            MapUpdate::Spread { service } => self.tables.selection.set(service.0, SPREAD),
        }
    }

    /// Denies exactly the clients with these prefixes. [`end_connections`] ends their connections.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn set_denied(&mut self, prefixes: impl Iterator<Item = Prefix>) -> Result<()> {
        self.deny.set(prefixes)
    }

    /// Denies clients, or allows them again.
    ///
    /// # Errors
    ///
    /// Names the prefix that could not be written.
    pub fn change_denied(
        &mut self,
        prefixes: impl Iterator<Item = Prefix>,
        deny: bool,
    ) -> Result<()> {
        for prefix in prefixes {
            match deny {
                true => self.deny.add(prefix)?,
                false => self.deny.remove(prefix)?,
            }
        }
        Ok(())
    }

    /// Returns the number of open connections of each backend.
    ///
    /// # Errors
    ///
    /// Names the map that could not be read.
    pub fn open_connections(&self) -> Result<Vec<(BackendId, u64)>> {
        let open = |id: &BackendId| Ok((*id, self.tables.open_connections(id.0)?));
        self.backends.keys().map(open).collect()
    }

    /// Returns what map `selection` holds for a service.
    ///
    /// # Errors
    ///
    /// Says that the map could not be read.
    pub fn selected(&self, service: ServiceId) -> Result<u32> {
        self.tables.selection.get(service.0)
    }

    /// Returns the most connections of a backend in mode `nat`; `None` in other modes.
    pub fn nat_ports(&self, backend: BackendId) -> Option<u64> {
        let known = self.backends.get(&backend)?;
        let is_nat = known.mode == Mode::Nat && !known.is_fallback;
        is_nat.then(|| self.tables.nat_ports(known.address.is_ipv4()))
    }

    /// Returns the counters of each worker's handshakes.
    ///
    /// # Errors
    ///
    /// Names the map that could not be read.
    pub fn traffic(&mut self) -> Result<Vec<(BackendId, TrafficCounters)>> {
        let (now, now_ns) = (Instant::now(), monotonic_ns()?);
        let workers = self.backends.iter().filter(|(_, it)| !it.is_fallback);
        let sampled = workers.map(|(id, _)| Ok((*id, self.tables.traffic(id.0)?)));
        let sampled: Result<_> = sampled.collect();
        self.sampled = sampled?;
        let counters = |(id, counted): (&BackendId, &Traffic)| {
            let age = Duration::from_nanos(now_ns.saturating_sub(counted.last_answer_ns));
            let last_packet = now.checked_sub(age).filter(|_| counted.last_answer_ns > 0);
            let counters = TrafficCounters {
                answered: counted.answered,
                refused: counted.refused,
                unanswered: counted.unanswered,
                last_packet,
            };
            (*id, counters)
        };
        Ok(self.sampled.iter().map(counters).collect())
    }

    /// Returns the counts of replies of each worker in mode `routed`, from the last call of [`Self::traffic`].
    pub fn reply_counters(&self) -> BTreeMap<BackendId, ReplyCounters> {
        let is_routed = |known: &BackendState| known.mode == Mode::Routed && known.health.is_some();
        let routed = self.sampled.iter().filter(|(id, _)| {
            let known = self.backends.get(id);
            known.is_some_and(is_routed)
        });
        let counters = |traffic: &Traffic| ReplyCounters {
            packets: traffic.packets_out,
            unanswered: traffic.unanswered,
        };
        routed.map(|(id, it)| (*id, counters(it))).collect()
    }

    /// Adds the services to map `services`, and removes services that are no longer configured.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn publish_services(&mut self, settings: &CoreSettings) -> Result<()> {
        let services = settings.services.iter();
        let services: Vec<_> = services
            .map(|it| (it.endpoint(), map_service(it)))
            .collect();
        self.tables.write_services(&services)?;
        let wanted = |id| self.backends.contains_key(&BackendId(id));
        self.retiring = self.tables.retire_missing(wanted)?;
        self.rollback.pin_path = None;
        let served = settings.services.iter().map(ServiceSettings::endpoint);
        self.announcements.update(&served.collect());
        Ok(())
    }

    /// The addresses of all workers.
    pub fn worker_addresses(&self) -> BTreeSet<IpAddr> {
        self.workers().map(|it| it.address.ip()).collect()
    }

    fn workers(&self) -> impl Iterator<Item = &BackendState> {
        self.backends.values().filter(|it| !it.is_fallback)
    }

    /// Returns the route to each worker for which it was looked up.
    pub fn worker_routes(&self) -> BTreeMap<BackendId, WorkerRoute> {
        let interfaces = self.attachments.interfaces().iter();
        let attached: BTreeSet<u32> = interfaces.filter_map(|it| it.index).collect();
        let known = self.backends.iter().filter(|(_, it)| it.looked_up);
        known
            .map(|(id, known)| (*id, known.worker_route(&attached)))
            .collect()
    }

    /// Returns why this configuration needs a restart; empty if it does not.
    pub fn restart_reasons(&self, config: &Config) -> Vec<String> {
        let reason = |family| {
            format!(
                "service: the first one with an {family} address, for which the maps have no connection \
                 table\n  to do: restart the manager, which creates it; traffic continues during the restart"
            )
        };
        let missing = self.tables.missing_families(config).into_iter().map(reason);
        let conflicts = conflicts(config).into_iter();
        missing.chain(conflicts.map(|it| it.to_string())).collect()
    }

    /// Writes the routes to the workers, and clears the link addresses that XDP has learned. The kernel's neighbour
    /// table then resolves the next packet, and XDP learns the address again from the reply. Otherwise a worker with a
    /// new link address would be unreachable until it counts as down.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn apply_routes(&mut self, routes: &Routes) -> Result<()> {
        self.log_routes(routes);
        let mut outcome = Ok(());
        for id in self.backends.keys().copied().collect::<Vec<_>>() {
            outcome = outcome.and(self.apply_route(id, routes));
        }
        outcome.and(self.update_source_filter())
    }

    /// Writes the manager's own addresses, and the interfaces of the routes to all workers.
    fn update_source_filter(&mut self) -> Result<()> {
        let own = addresses::sent_by_this_host_only()?;
        let workers = self.workers();
        let routes = workers.map(|it| (it.address.ip(), it.route.clone()));
        let expected = expected_interfaces(&own, &routes.collect());
        self.tables.source_filter.replace(&expected)
    }

    /// Logs changed routes to workers.
    fn log_routes(&self, routes: &Routes) {
        let is_new = |it: &&BackendState| {
            let found = routes.get(&it.address.ip());
            found.is_some_and(|found| it.differs(found))
        };
        let changed = self.workers().filter(is_new);
        let changed: BTreeSet<IpAddr> = changed.map(|it| it.address.ip()).collect();
        for address in changed {
            match &routes[&address] {
                Some(route) => info!("{address} is reached {route}"),
                None => warn!(
                    "no route to {address}: the worker there gets no new connection until there is \
                     one (ip route get {address})"
                ),
            }
        }
    }

    /// Clears the learned link addresses of workers behind this next hop, whose link address has changed.
    ///
    /// # Errors
    ///
    /// Names the map that could not be written.
    pub fn clear_neighbours_behind(&mut self, next_hop: IpAddr) -> Result<()> {
        let is_behind =
            |it: &BackendState| it.route.as_ref().is_some_and(|it| it.next_hop == next_hop);
        let behind = self.backends.iter().filter(|(_, known)| is_behind(known));
        let mut outcome = Ok(());
        for (id, _) in behind {
            outcome = outcome.and(self.tables.clear_neighbour(id.0));
        }
        outcome
    }

    fn apply_route(&mut self, id: BackendId, routes: &Routes) -> Result<()> {
        let Some(known) = self.backends.get_mut(&id).filter(|it| !it.is_fallback) else {
            return Ok(());
        };
        let address = known.address.ip();
        let Some(found) = routes.get(&address) else {
            return Ok(());
        };
        if known.differs(found) {
            known.route.clone_from(found);
            known.looked_up = true;
            self.write_backend(id)?;
        }
        self.tables.clear_neighbour(id.0)
    }

    /// Attaches missing programs. Returns each change once.
    pub fn reconcile_attachments(&mut self) -> Vec<Event> {
        let changes = self.attachments.reconcile(&mut self.ebpf);
        // TC checks the frames of an interface with another link address.
        if let Err(error) = self.own_links.update(self.attachments.interfaces()) {
            debug!("{error:#}");
        }
        changes
    }

    /// The attachments to report.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.reportable()
    }

    /// The configured interfaces in their order, each with its present name and, unless it is gone, its index.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, Option<u32>)> {
        let interfaces = self.attachments.interfaces().iter();
        interfaces.map(|it| (it.interface.as_str(), it.index))
    }

    /// The backends that may have connections, as far as this process knows their identities.
    pub fn identities(&self) -> impl Iterator<Item = (u32, Identity)> {
        let identities = self.identities.iter();
        identities.map(|(id, identity)| (id.0, *identity))
    }

    /// Whether the programs forward packets of a backend's connections to it.
    pub fn keeps_flows(&self, backend: BackendId) -> bool {
        let backend = self.backends.get(&backend);
        backend.is_some_and(|it| {
            let health = it.health.unwrap_or(Health::Unknown);
            matches!(it.state(health), state::UP | state::DRAINING)
        })
    }

    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }

    fn write_backend(&mut self, id: BackendId) -> Result<()> {
        let Some(known) = self.backends.get(&id) else {
            return Ok(());
        };
        let Some(health) = known.health else {
            return Ok(());
        };
        let mut backend = known.value(health);
        if !known.looked_up && !known.is_fallback {
            // Until the route is looked up, connections of a backend that was added again keep the former route.
            let before = self.tables.backends.get(id.0)?;
            if is_at(&before, known) {
                backend.mode = before.mode;
                backend.interface = before.interface;
                backend.next_hop = before.next_hop;
                backend.source = before.source;
            }
        }
        if backend.mode == mode::NAT {
            backend.port_pool = self.tables.port_pool(known.endpoint())?;
        }
        // If the programs are not attached to the route's interface, replies arrive at a lower one: at a bridge's port,
        // or with a VLAN tag.
        let is_attached = |it: &Attachment| it.index == Some(backend.interface);
        if matches!(backend.mode, mode::NAT | mode::ROUTED)
            && self.attachments.interfaces().iter().any(is_attached)
        {
            backend.reply_interface = backend.interface;
        }
        self.tables.write_backend(id.0, &backend)
    }
}

/// The value of map `services`.
fn map_service(service: &ServiceSettings) -> Service {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    Service {
        id: service.id.0,
        flags: flag(service.retry_refused, service_flag::RETRY_REFUSED)
            | flag(service.mode == Mode::Dsr, service_flag::QUERY_AGENTS),
    }
}

/// Returns a random key for the programs' hash.
fn secret() -> Result<[u64; 2]> {
    let random = || getrandom::u64().context("draw a random number");
    Ok([random()?, random()?])
}

/// Detaches the programs and removes every pin.
///
/// # Errors
///
/// Names what could not be removed, or says that a manager still runs.
pub fn unload(pin_path: &Path) -> Result<bool> {
    kernel::check_privileges()?;
    let pinned = pin_path.join(name::SETTINGS).exists() || pin_path.join(bpffs::LINKS).exists();
    if !pin_path.exists() {
        return detach_clsact();
    }
    bpffs::check(pin_path)?;
    let _lock = bpffs::Lock::acquire(
        pin_path,
        "a running memlb manager",
        "stop it first (systemctl stop memlb-manager); nothing was removed",
    )?;
    let detached = detach_clsact()?;
    if let Some(earlier) = adopt::previous_settings(pin_path) {
        loopback::set_accept_local(earlier.accept_local_before)?;
    }
    bpffs::remove(pin_path)
        .with_context(|| format!("remove the pins at {}", pin_path.display()))?;
    Ok(pinned || detached)
}

#[cfg(test)]
mod tests;
