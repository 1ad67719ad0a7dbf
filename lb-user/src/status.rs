//! The status of a manager: the core's snapshot with the datapath's counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use lb_common::verdict::Verdict;
use lb_core::{Audited, BackendSnapshot, MANAGER, ServiceSnapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{AttachMode, Attachment, BackendTraffic, MapFill, Packets, Stats},
    handover::HandedOver,
    membership::AbsentWorker,
    peer::PeerStatus,
};

/// The whole state of a manager at one instant; also its JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub uptime_ms: u64,
    /// The configuration file that the manager was started with; `None` for the built-in example.
    pub config_file: Option<PathBuf>,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceStatus>,
    /// The services whose selection in the kernel's map differs from the manager's choice.
    #[serde(default)]
    pub kernel_selections: Vec<KernelSelection>,
    pub heartbeats: Heartbeats,
    /// The number of prefixes of clients that the operator has denied.
    #[serde(default)]
    pub denied_prefixes: usize,
    /// The sources of workers outside of the configuration file.
    #[serde(default)]
    pub sources: Vec<WorkerSource>,
    /// The other managers of the same services.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Since when this manager asks keepalived for a lower priority, if it does.
    pub handed_over: Option<HandedOver>,
    pub verdicts: BTreeMap<String, Packets>,
    /// First packets of connections that the manager refused since the maps were made: by service, then by verdict.
    #[serde(default)]
    pub refusals: BTreeMap<String, BTreeMap<String, u64>>,
    /// How full the connection tables are.
    pub maps: BTreeMap<String, MapFill>,
    /// Why there are no counters: the layout of the pinned maps differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters_problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Interface")]
pub struct InterfaceStatus {
    pub name: String,
    /// `tc` or `xdp`, or `none` while the interface is gone or its programs cannot be attached.
    pub attachment: String,
    pub reason: String,
    /// Programs of another memlb that receive the packets of the interface first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preceded_by: Vec<String>,
}

/// A selection that another program, such as bpftool, has written into map `selection`. The manager overwrites it with
/// its next choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelSelection {
    pub service: String,
    /// A name as in `selected` of the service.
    pub selected: String,
    /// The time since the manager noticed it.
    pub since_ms: u64,
}

/// A service with its backends and their traffic.
pub type ServiceStatus = ServiceSnapshot<BackendStatus>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Backend")]
pub struct BackendStatus {
    #[serde(flatten)]
    pub seen: BackendSnapshot,
    #[serde(flatten)]
    pub traffic: BackendTraffic,
}

/// The maximum number of workers of a source that the text names.
const MAX_NAMED: usize = 12;

/// A source of workers outside of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerSource {
    pub name: String,
    /// The workers of its list in force, as `service/worker`.
    pub workers: Vec<String>,
    /// The time since its last list; `null` if an earlier manager received it.
    pub last_report_ms: Option<u64>,
    /// Why it has no current list. Its last list stays in force.
    pub problem: Option<String>,
    /// The entries of its list that are not workers.
    pub absent: Vec<AbsentWorker>,
}

impl fmt::Display for WorkerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self
            .last_report_ms
            .map_or("no list since this manager started".to_owned(), |age| {
                format!("last list {} ago", format_seconds(age))
            });
        let names = self.workers.iter().take(MAX_NAMED).map(String::as_str);
        let mut names: Vec<&str> = names.collect();
        if self.workers.len() > MAX_NAMED {
            names.push("...");
        }
        let workers = match names.as_slice() {
            [] => "no worker".to_owned(),
            [name] => format!("1 worker ({name})"),
            names => format!("{} workers ({})", self.workers.len(), names.join(", ")),
        };
        writeln!(f, "source {}: {workers}, {last}", self.name)?;
        if let Some(problem) = &self.problem {
            writeln!(f, "  {problem}; its last workers stay")?;
        }
        (self.absent.iter()).try_for_each(|absent| writeln!(f, "  not a worker: {absent}"))
    }
}

/// Datagrams since the manager started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeats {
    pub accepted: u64,
    /// By reason.
    pub refused: BTreeMap<String, u64>,
    /// The last datagram of each reason for which some were refused within the last minute.
    #[serde(default)]
    pub refused_lately: BTreeMap<String, RefusedDatagram>,
    /// Accepted without a signature while authentication is not `off`, by worker.
    pub unsigned: BTreeMap<String, u64>,
    /// `off`, `permissive` or `enforce`.
    pub authentication: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedDatagram {
    pub age_ms: u64,
    /// The sender's address and port.
    pub from: String,
    pub detail: String,
}

impl Heartbeats {
    /// Returns the reasons of late refusals, without `not_fresh`, which is usual when an agent starts.
    pub fn unexpected_refusals(&self) -> impl Iterator<Item = (&str, &RefusedDatagram)> {
        let lately = self.refused_lately.iter();
        let lately = lately.map(|(reason, refused)| (reason.as_str(), refused));
        lately.filter(|(reason, _)| *reason != "not_fresh")
    }
}

impl fmt::Display for RefusedDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            age_ms,
            from,
            detail,
        } = self;
        let age = format_seconds(*age_ms);
        write!(f, "the last {age} ago from {from}: {detail}")
    }
}

/// The verdicts of packets to and from backends. The programs count them in the traffic of the backend.
pub const FORWARDED: [Verdict; 4] = [
    Verdict::ToBackend,
    Verdict::ToClient,
    Verdict::ToManager,
    Verdict::FromManager,
];

/// The part of the status that the manager's main task has; the task that replies reads the counters.
#[derive(Debug, Clone)]
pub struct ManagerSnapshot {
    pub uptime_ms: u64,
    pub config_file: Option<PathBuf>,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceSnapshot>,
    pub kernel_selections: Vec<KernelSelection>,
    pub heartbeats: Heartbeats,
    pub denied_prefixes: usize,
    pub sources: Vec<WorkerSource>,
}

impl From<&Attachment> for InterfaceStatus {
    fn from(attachment: &Attachment) -> Self {
        let name = attachment.interface.clone();
        let preceded_by = attachment.preceding.clone();
        let missing = attachment.missing.as_slice();
        let lacks = || format!("{} cannot be attached, see the log", missing.join(", "));
        let (attachment, reason) = match (attachment.index, missing) {
            (None, _) => (NOT_ATTACHED, "the interface is gone".to_owned()),
            (Some(_), []) => (attachment.mode.name(), attachment.reason.clone()),
            // TC handles the packets that XDP would.
            (Some(_), ["memlb_xdp"]) => (AttachMode::Tc.name(), lacks()),
            (Some(_), _) => (NOT_ATTACHED, lacks()),
        };
        Self {
            preceded_by,
            name,
            attachment: attachment.to_owned(),
            reason,
        }
    }
}

/// The attachment of an interface without programs.
const NOT_ATTACHED: &str = "none";

impl InterfaceStatus {
    pub fn is_attached(&self) -> bool {
        self.attachment != NOT_ATTACHED
    }
}

impl Status {
    pub fn new(snapshot: ManagerSnapshot, stats: &Stats) -> Self {
        let backend = |seen: BackendSnapshot| BackendStatus {
            traffic: (stats.backends.get(&seen.backend_id.0).copied()).unwrap_or_default(),
            seen,
        };
        let refusals = snapshot.services.iter().filter_map(|service| {
            let counts = stats.refusals.get(&service.service_id.0)?.by_verdict();
            let counts = counts.into_iter().filter(|(_, count)| *count > 0);
            let counts = counts.map(|(verdict, count)| (verdict.name().to_owned(), count));
            Some((service.name.clone(), counts.collect()))
        });
        let refusals = refusals.collect();
        let services = snapshot.services.into_iter();
        let services: Vec<ServiceStatus> = services.map(|it| it.map_backends(backend)).collect();
        let mut verdicts = with_owned_names(&stats.verdicts);
        let backends = services.iter().flat_map(|service| &service.backends);
        let fallbacks = backends.filter(|it| it.seen.name == MANAGER);
        let fallbacks: BTreeSet<u32> = fallbacks.map(|it| it.seen.backend_id.0).collect();
        // Also those of removed workers, because these counters never decrease.
        for (id, traffic) in &stats.backends {
            let [to_backend, to_client, to_manager, from_manager] = FORWARDED;
            let (inward, outward) = if fallbacks.contains(id) {
                (to_manager, from_manager)
            } else {
                (to_backend, to_client)
            };
            let mut add = |verdict: Verdict, packets, bytes| {
                let sum = verdicts.entry(verdict.name().to_owned()).or_default();
                sum.packets += packets;
                sum.bytes += bytes;
            };
            add(inward, traffic.packets_in, traffic.bytes_in);
            add(outward, traffic.packets_out, traffic.bytes_out);
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: snapshot.uptime_ms,
            config_file: snapshot.config_file,
            interfaces: snapshot.interfaces,
            services,
            kernel_selections: snapshot.kernel_selections,
            heartbeats: snapshot.heartbeats,
            denied_prefixes: snapshot.denied_prefixes,
            sources: snapshot.sources,
            peers: Vec::new(),
            handed_over: None,
            verdicts,
            refusals,
            maps: with_owned_names(&stats.maps),
            counters_problem: stats.problem.clone(),
        }
    }

    /// The backends of all services.
    pub fn backends(&self) -> impl Iterator<Item = &BackendStatus> {
        self.services.iter().flat_map(|service| &service.backends)
    }
}

/// Says how many connections to a service the manager itself has refused, and why; `None` if none.
pub fn refusals(status: &Status, service: &str) -> Option<String> {
    let counts = status.refusals.get(service)?.iter();
    let counts = counts.map(|(verdict, count)| format!("{verdict} {count}"));
    let counts: Vec<String> = counts.collect();
    (!counts.is_empty()).then(|| format!("refused by the manager: {}", counts.join(", ")))
}

/// Says how many handshakes a backend has refused or left unanswered, how many connections it has reset, and when it
/// last answered a client; `None` if it has refused, left or reset none.
pub fn failures(traffic: &BackendTraffic) -> Option<String> {
    let BackendTraffic {
        refused,
        retried,
        unanswered,
        resets,
        last_answer_ms,
        ..
    } = *traffic;
    let parts = [
        (refused, "refused"),
        (retried, "of these sent on to another worker"),
        (unanswered, "unanswered"),
        (resets, "reset after the answer"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if parts.is_empty() {
        return None;
    }
    let last = match last_answer_ms {
        None => "no answer to a client yet".to_owned(),
        Some(age) => format!("last answer to a client {} ago", format_seconds(age)),
    };
    Some(format!("handshakes: {}; {last}", parts.join(", ")))
}

/// Returns the operator's orders for a backend, why it gets less than its share, and that its figures are stale or its
/// heartbeats missing, one sentence each.
pub fn remarks(seen: &BackendSnapshot) -> Vec<String> {
    let state = seen.admin_state.as_ref();
    let weight = seen.weight_percent.as_ref();
    let orders = [
        state.map(|it| format!("{} {}", it.value.description(), author(it))),
        weight.map(|it| format!("weight {}% {}", it.value, author(it))),
        seen.pause.as_ref().map(|it| {
            let left = format_seconds(seen.pause_left_ms.unwrap_or(0));
            let whole = format_seconds(it.value);
            format!("paused for {whole} {}, {left} are left", author(it))
        }),
    ];
    // An order's own remark has more than its reason.
    let is_ordered = orders.iter().any(Option::is_some);
    let reason = seen.reason.as_ref();
    let reason = reason.filter(|it| !is_ordered || !it.kind.is_order());
    let others = [
        reason.map(|it| it.text.clone()),
        seen.memory_stale_ms.map(|age| {
            let age = format_seconds(age);
            format!("its memory figures are {age} old: its agent cannot read new ones")
        }),
        (seen.heartbeats_missing)
            .then(|| "its heartbeats are missing, and its packets keep it up".to_owned()),
    ];
    orders.into_iter().chain(others).flatten().collect()
}

/// Says who gave an order, when and why.
fn author<T>(order: &Audited<T>) -> String {
    let (by, at) = (&order.by, format_time(order.at_ms));
    match &order.reason {
        Some(reason) => format!("by {by} since {at}: {reason}"),
        None => format!("by {by} since {at}"),
    }
}

fn with_owned_names<T: Copy>(values: &BTreeMap<&'static str, T>) -> BTreeMap<String, T> {
    let values = values.iter();
    values.map(|(name, it)| ((*name).to_owned(), *it)).collect()
}

/// Formats milliseconds since 1970 as RFC 3339, in UTC and whole seconds.
pub fn format_time(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Formats a duration in whole seconds, such as `2m 5s`.
pub fn format_seconds(milliseconds: u64) -> String {
    let rounded = Duration::from_secs(milliseconds / 1000);
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use lb_core::Core;

    use super::*;
    use crate::config::{Config, Overrides, PinnedIds};

    #[test]
    fn packets_of_a_removed_worker_stay_in_the_counters_of_verdicts() {
        let config = Config::example(&Overrides::default(), None).unwrap();
        let now = Instant::now();
        let core = Core::new(config.settings(&PinnedIds::default()), now);
        let services = core.snapshot(now).services;
        let backends = services[0].backends.iter();
        let ids: Vec<u32> = backends.map(|it| it.backend_id.0).collect();
        let fallback = services[0]
            .backends
            .iter()
            .position(|it| it.name == MANAGER);
        let traffic = |packets_in| BackendTraffic {
            packets_in,
            ..BackendTraffic::default()
        };
        let removed = ids.iter().max().unwrap() + 1;
        let worker = ids[usize::from(fallback == Some(0))];
        let counted = [
            (worker, traffic(10)),
            (ids[fallback.unwrap()], traffic(200)),
            (removed, traffic(3000)),
        ];
        let stats = Stats {
            backends: counted.into(),
            ..Stats::default()
        };
        let snapshot = ManagerSnapshot {
            uptime_ms: 0,
            config_file: None,
            interfaces: Vec::new(),
            services,
            kernel_selections: Vec::new(),
            heartbeats: Heartbeats::default(),
            denied_prefixes: 0,
            sources: Vec::new(),
        };
        let verdicts = Status::new(snapshot, &stats).verdicts;
        let packets = |verdict: Verdict| verdicts[verdict.name()].packets;
        assert_eq!(packets(Verdict::ToBackend), 3010);
        assert_eq!(packets(Verdict::ToManager), 200);
    }
}
