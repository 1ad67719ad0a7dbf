//! What views of the manager show: the core's view joined with the datapath's counters.

use std::{collections::BTreeMap, fmt, path::PathBuf};

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
    /// The configuration file that the manager was started with; nothing where that is the built-in
    /// example.
    pub config_file: Option<PathBuf>,
    pub interfaces: Vec<Interface>,
    pub services: Vec<ServiceSnapshot<Backend>>,
    /// The services of which the kernel's map selects something else than the manager.
    #[serde(default)]
    pub kernel_selections: Vec<KernelSelection>,
    pub heartbeats: Heartbeats,
    /// How many prefixes of clients the operator has denied.
    #[serde(default)]
    pub denied_prefixes: usize,
    /// The sources outside of the configuration file that give workers.
    #[serde(default)]
    pub sources: Vec<WorkerSource>,
    /// The other managers of the same services.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Since when this manager asks keepalived for a lower priority, if it does.
    pub handed_over: Option<HandedOver>,
    pub verdicts: BTreeMap<String, Packets>,
    /// By service, then by verdict: first packets of connections that the manager refused since the maps were made.
    #[serde(default)]
    pub refusals: BTreeMap<String, BTreeMap<String, u64>>,
    /// How full the connection tables are.
    pub maps: BTreeMap<String, MapFill>,
    /// Why there are no counters: the pinned maps have another layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters_problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    pub name: String,
    /// `tc` or `xdp`, or `none` while the interface is gone or its programs cannot be attached.
    pub attachment: String,
    pub reason: String,
    /// Programs of another memlb that receive the packets of the interface first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preceded_by: Vec<String>,
}

/// Another program, such as bpftool, has written map `selection`. The manager writes it again with its next choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelSelection {
    pub service: String,
    /// A name as in `selected` of the service.
    pub selected: String,
    /// How long the manager has seen it.
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    #[serde(flatten)]
    pub seen: BackendSnapshot,
    #[serde(flatten)]
    pub traffic: BackendTraffic,
}

/// The most workers of a source that the text names.
const MAX_NAMED: usize = 12;

/// A source that gives workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerSource {
    pub name: String,
    /// Its workers in force, as `service/worker`.
    pub workers: Vec<String>,
    /// Since it last gave its workers; `null` if that was to an earlier manager.
    pub heard_ms: Option<u64>,
    /// Why it cannot say which workers there are. The last ones stay meanwhile.
    pub problem: Option<String>,
    /// What is not a worker although it might be expected to be one.
    pub absent: Vec<AbsentWorker>,
}

impl fmt::Display for WorkerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heard = self
            .heard_ms
            .map_or("before this manager started".to_owned(), |age| {
                format!("{} ago", seconds(age))
            });
        let names = self.workers.iter().take(MAX_NAMED).map(String::as_str);
        let mut names: Vec<&str> = names.collect();
        if self.workers.len() > MAX_NAMED {
            names.push("...");
        }
        let workers = match names.as_slice() {
            [] => "no worker".to_owned(),
            names => format!("{} workers ({})", self.workers.len(), names.join(", ")),
        };
        writeln!(f, "source {}: {workers}, last heard {heard}", self.name)?;
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
    /// Accepted without a signature where there should be one, by worker.
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
    /// Returns what was refused lately, but for what is usual at every start of an agent.
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
        let age = seconds(*age_ms);
        write!(f, "the last {age} ago from {from}: {detail}")
    }
}

/// The verdicts of packets that reached a backend or came from one, which the programs count there.
pub const FORWARDED: [Verdict; 4] = [
    Verdict::ToBackend,
    Verdict::ToClient,
    Verdict::ToManager,
    Verdict::FromManager,
];

/// What the manager's main task contributes; the task that answers reads the counters.
#[derive(Debug, Clone)]
pub struct ManagerSnapshot {
    pub uptime_ms: u64,
    pub config_file: Option<PathBuf>,
    pub interfaces: Vec<Interface>,
    pub services: Vec<ServiceSnapshot>,
    pub kernel_selections: Vec<KernelSelection>,
    pub heartbeats: Heartbeats,
    pub denied_prefixes: usize,
    pub sources: Vec<WorkerSource>,
}

impl From<&Attachment> for Interface {
    fn from(attachment: &Attachment) -> Self {
        let name = attachment.interface.clone();
        let preceded_by = attachment.preceding.clone();
        let missing = attachment.missing.as_slice();
        let lacks = || format!("{} cannot be attached, see the log", missing.join(", "));
        let (attachment, reason) = match (attachment.index, missing) {
            (None, _) => (NOT_ATTACHED, "the interface is gone".to_owned()),
            (Some(_), []) => (attachment.mode.name(), attachment.reason.clone()),
            // What XDP does not meet, TC does.
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

impl Interface {
    pub fn is_attached(&self) -> bool {
        self.attachment != NOT_ATTACHED
    }
}

impl Status {
    pub fn new(snapshot: ManagerSnapshot, stats: &Stats) -> Self {
        let backend = |seen: BackendSnapshot| Backend {
            traffic: stats
                .backends
                .get(&seen.backend_id.0)
                .copied()
                .unwrap_or_default(),
            seen,
        };
        let refusals = snapshot.services.iter().filter_map(|service| {
            let counts = stats.refusals.get(&service.service_id.0)?.by_verdict();
            let counts = counts.into_iter().filter(|(_, count)| *count > 0);
            let counts = counts.map(|(verdict, count)| (verdict.name().to_owned(), count));
            Some((service.name.clone(), counts.collect()))
        });
        let refusals = refusals.collect();
        let services: Vec<ServiceSnapshot<Backend>> = snapshot
            .services
            .into_iter()
            .map(|service| service.map_backends(backend))
            .collect();
        let mut verdicts: BTreeMap<String, Packets> = stats
            .verdicts
            .iter()
            .map(|(name, packets)| ((*name).to_owned(), *packets))
            .collect();
        for Backend { seen, traffic } in services.iter().flat_map(|service| &service.backends) {
            let [to_backend, to_client, to_manager, from_manager] = FORWARDED;
            let (inward, outward) = if seen.name == MANAGER {
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
            maps: stats
                .maps
                .iter()
                .map(|(name, fill)| ((*name).to_owned(), *fill))
                .collect(),
            counters_problem: stats.problem.clone(),
        }
    }

    /// The backends of all services.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.services.iter().flat_map(|service| &service.backends)
    }
}

/// Says how many connections to a service the manager itself has refused, and why. Nothing if there were none.
pub fn refusals(status: &Status, service: &str) -> Option<String> {
    let counts = status.refusals.get(service)?.iter();
    let counts = counts.map(|(verdict, count)| format!("{verdict} {count}"));
    let counts: Vec<String> = counts.collect();
    (!counts.is_empty()).then(|| format!("refused by the manager: {}", counts.join(", ")))
}

/// Says how many handshakes a backend has refused or left unanswered, how many connections it has reset, and when it was
/// last heard in traffic. Nothing if there were none.
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
    let heard = match last_answer_ms {
        None => "never heard in traffic".to_owned(),
        Some(age) => format!("last heard in traffic {} ago", seconds(age)),
    };
    Some(format!("handshakes: {}; {heard}", parts.join(", ")))
}

/// Returns what the operator has ordered of a backend, why it gets less than its share, and that its memory
/// figures are stale, one sentence each.
pub fn remarks(seen: &BackendSnapshot) -> Vec<String> {
    let hold = seen.admin_state.as_ref().map(|mark| {
        let held = mark.value.description();
        format!("{held} {}", given(mark))
    });
    let weight = seen.weight_percent.as_ref().map(|mark| {
        let percent = mark.value;
        format!("weight {percent}% {}", given(mark))
    });
    let pause = seen.pause.as_ref().map(|mark| {
        let (whole, left) = (
            seconds(mark.value),
            seconds(seen.pause_left_ms.unwrap_or(0)),
        );
        format!("paused for {whole} {}, {left} are left", given(mark))
    });
    // The order says it, with its author and time.
    let is_ordered = hold.is_some() || weight.is_some() || pause.is_some();
    let reason = seen.reason.as_ref();
    let reason = reason.filter(|it| !is_ordered || !it.kind.is_order());
    let stale = seen.memory_stale_ms.map(|age| {
        let age = seconds(age);
        format!("its memory figures are {age} old: its agent cannot read new ones")
    });
    let remarks = hold
        .into_iter()
        .chain(weight)
        .chain(pause)
        .chain(reason.map(|it| it.text.clone()));
    let missing = seen.heartbeats_missing.then(|| {
        let text = "its heartbeats are missing, and its packets keep it up";
        text.to_owned()
    });
    remarks.chain(stale).chain(missing).collect()
}

fn given<T>(mark: &Audited<T>) -> String {
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(mark.at_ms);
    let at = humantime::format_rfc3339_seconds(at);
    match &mark.reason {
        Some(reason) => format!("by {} since {at}: {reason}", mark.by),
        None => format!("by {} since {at}", mark.by),
    }
}

fn seconds(milliseconds: u64) -> String {
    let rounded = std::time::Duration::from_secs(milliseconds / 1000);
    humantime::format_duration(rounded).to_string()
}
