//! Events: what the manager decided or observed. One macro declares kind, fields, severity and text of each.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::AdminCommand;
use crate::counted;
use crate::eligibility::Ineligibility;
use crate::handshakes::Evidence;
use crate::health::Health;
use crate::memory::{Bytes, Memory, Pressure};
use crate::names::ALL_WORKERS;
use crate::policy::Policy;
use crate::reason::{Rule, SelectionReason, fallback_outcome};
use crate::settings::BackendId;

/// Whether an operator should look at an event.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warn,
}

/// Why the shares of a service changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A worker came up.
    Joined,
    /// A worker is no longer up.
    Lost,
    /// Weights changed by memory, age or ramp.
    Weights,
    /// An operator's command.
    Operator,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joined => "a worker came up",
            Self::Lost => "a worker is no longer up",
            Self::Weights => "weights changed",
            Self::Operator => "an operator's command",
        })
    }
}

/// The severity of a kind, and whether it also goes to listeners, not only to the event log.
type Level = (Severity, Audience);

const INFO: Level = (Severity::Info, Audience::Everyone);
const WARN: Level = (Severity::Warn, Audience::Everyone);
const LOG_ONLY: Level = (Severity::Info, Audience::EventLog);

/// Where events of a kind go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The event log and all listeners.
    Everyone,
    /// The event log only.
    EventLog,
}

/// The properties of a kind of event. A test compares them with docs/events.md.
#[derive(Debug)]
pub struct EventKind {
    /// The name of the variant. In JSON it is written in snake case.
    pub name: &'static str,
    /// `Info` instead if the operator expects the event.
    pub severity: Severity,
    pub audience: Audience,
    pub fields: &'static [&'static str],
}

/// Defines the events, in the form `Kind { fields } LEVEL, "text";`. `LEVEL unless FIELD` lowers the severity to
/// `Info` if that field is true. The text is a format string over the fields.
macro_rules! events {
    ($(
        $(#[doc = $doc:literal])*
        $kind:ident { $( $(#[$attribute:meta])* $field:ident: $type:ty ),* $(,)? }
        $level:ident $(unless $expected:ident)?, $text:literal $(, $argument:expr)*;
    )*) => {
        /// Something that the manager decided or observed. Its JSON is one object with the kind in `event`.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(tag = "event", rename_all = "snake_case")]
        pub enum Event {
            $( $(#[doc = $doc])* $kind { $( $(#[$attribute])* $field: $type ),* } ),*
        }

        impl Event {
            pub const KINDS: &[EventKind] = &[$( EventKind {
                name: stringify!($kind),
                severity: $level.0,
                audience: $level.1,
                fields: &[$( stringify!($field) ),*],
            } ),*];

            pub fn severity(&self) -> Severity {
                match self {
                    $( Self::$kind { $($expected,)? .. } => {
                        $( if *$expected { return Severity::Info; } )?
                        $level.0
                    } )*
                }
            }

            pub fn audience(&self) -> Audience {
                match self {
                    $( Self::$kind { .. } => $level.1, )*
                }
            }
        }

        impl fmt::Display for Event {
            #[expect(unused_variables, reason = "a text need not name every field")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$kind { $($field),* } => write!(f, $text $(, $argument)*), )*
                }
            }
        }
    };
}

events! {
    WorkerUp {
        worker: String,
        was: Health,
        memory_available_bytes: Option<u64>,
        memory_total_bytes: Option<u64>,
    }
    INFO, "{worker} is up (was {was}){}", memory_text(*memory_available_bytes, *memory_total_bytes);

    WorkerDown {
        worker: String,
        was: Health,
        /// Time since the last heartbeat.
        silent_ms: u64,
        /// As last reported.
        memory_available_bytes: Option<u64>,
        /// An operator has it in maintenance or paused it.
        expected: bool,
    }
    WARN unless expected, "{worker} is down: no heartbeat for {silent_ms} ms{}",
        if *expected { ", as expected" } else { "" };

    WorkerUnhealthy { worker: String, was: Health, expected: bool }
    WARN unless expected,
        "{worker} is unhealthy: its agent reports that its service does not answer";

    WorkerLeaving { worker: String, was: Health }
    INFO, "{worker} is leaving: its agent stops";

    WorkerMaintenance { worker: String, was: Health }
    INFO, "{worker} is in maintenance";

    /// A worker that is up cannot serve a service.
    WorkerIneligible { worker: String, service: String, ineligibility: Ineligibility, reason: String }
    WARN, "{service}: {reason}";

    WorkerEligible { worker: String, service: String }
    INFO, "{service}: {worker} can serve again";

    /// A worker that is up gets no new connection of a service, because handshakes fail.
    WorkerFailing {
        worker: String,
        service: String,
        /// Failed handshakes in a row.
        evidence: Evidence,
        /// Until the manager opens a connection to it.
        trial_in_ms: u64,
    }
    WARN, "{service}: {worker} is failing: it {evidence}; no new connection, tried in {trial_in_ms} ms";

    /// Handshakes of a worker fail, but it still gets connections, because too many others are failing.
    FailingWorkerKept {
        worker: String,
        service: String,
        evidence: Evidence,
        failing: usize,
        workers: usize,
    }
    WARN, "{service}: {worker} {evidence}, and still gets connections: {failing} of {workers} workers are failing";

    /// The trial of a failing worker was answered.
    WorkerRecovered {
        worker: String,
        service: String,
        failing_ms: u64,
        /// The number of trials, with the answered one.
        trials: u32,
    }
    INFO, "{service}: {worker} answers again after {failing_ms} ms (trial {trials})";

    /// Most workers fell silent together, and packets of some of them still arrive.
    HeartbeatsMissing {
        /// Workers without heartbeats.
        silent: usize,
        /// All workers of the group.
        workers: usize,
        /// Silent workers whose packets arrive. They stay up.
        sending: usize,
        silent_ms: u64,
    }
    WARN, "the heartbeats of {silent} of {workers} workers stopped {silent_ms} ms ago, at the same time, while packets \
           of {sending} of them still arrive: those stay up. Look for a firewall rule or a broken link on the path of \
           the heartbeats (memlb doctor)";

    HeartbeatsBack {
        /// The last worker that sends heartbeats again.
        worker: String,
        missing_ms: u64,
    }
    INFO, "the heartbeats arrive again, the last those of {worker}, after {missing_ms} ms";

    BackupsServe { service: String, backups: usize }
    WARN, "{service}: no primary worker can serve; new connections go to {backups} backup{}",
        if *backups == 1 { "" } else { "s" };

    PrimariesServe { service: String, workers: usize }
    INFO, "{service}: a primary worker can serve again ({workers} now); the backups get no new connection";

    AgentRestarted { worker: String, boot: String }
    INFO, "the agent of {worker} was restarted (boot {boot})";

    /// After a silence, unsigned heartbeats with the same boot id have lower sequence numbers.
    SequenceReset { worker: String }
    INFO, "the sequence numbers of {worker} restarted at a lower number: its machine was restored from a \
           snapshot";

    MemoryStale { worker: String }
    WARN, "the agent of {worker} cannot read its memory figures and repeats the last ones: see its log";

    MemoryFresh { worker: String }
    INFO, "the agent of {worker} reads its memory figures again";

    IntervalTooLong { worker: String, interval_ms: u64, down_after_ms: u64 }
    WARN, "{worker} sends a heartbeat only every {interval_ms} ms, but counts as down after \
           {down_after_ms} ms: lower its --interval or raise down_after to three intervals";

    WorkerJoined { worker: String, address: IpAddr }
    INFO, "{worker} has joined at {address}";

    WorkerRemoved { worker: String }
    INFO, "{worker}, which had joined, was silent for an hour and is removed";

    /// A source outside of memlb gave another list of workers; each is `service/worker`.
    WorkersChanged { source: String, added: Vec<String>, changed: Vec<String>, removed: Vec<String> }
    INFO, "workers of {source}: {}", changes_text(added, changed, removed);

    /// A source explains why something is not a worker, or the manager cannot add a worker.
    WorkerNotAdmitted { source: String, what: String, reason: String }
    WARN, "workers of {source}: {what} is not a worker: {reason}";

    WorkerListRefused { source: String, error: String }
    WARN, "workers of {source}: {error}";

    /// A source cannot say which workers there are.
    SourceFailed { source: String, problem: String }
    WARN, "workers of {source}: {problem}; its last workers stay";

    SourceRecovered { source: String }
    INFO, "workers of {source}: the list is up to date again";

    SelectionChanged {
        service: String,
        /// `None` at the manager's start.
        from: Option<String>,
        /// A worker, `manager`, `none`, or `*` where connections are spread.
        to: String,
        /// `None` where connections are spread.
        backend: Option<BackendId>,
        rule: Rule,
        reason: String,
        from_memory_available_bytes: Option<u64>,
        to_memory_available_bytes: Option<u64>,
        threshold_bytes: Option<u64>,
    }
    INFO, "{service}: {}: {reason}", switch_text(from.as_deref(), to);

    /// A restarted manager keeps the selection of the pinned maps.
    SelectionAdopted { service: String, to: String, backend: Option<BackendId> }
    INFO, "{service}: {} over the restart",
        if to == ALL_WORKERS { "connections stay spread".to_owned() } else { format!("{to} stays selected") };

    /// Rate-limited while only weights change.
    SharesChanged {
        service: String,
        policy: Policy,
        cause: Cause,
        /// The number of workers that take connections.
        workers: usize,
        /// The workers with the largest and smallest share; shares are hundredths of a percent.
        most: String,
        most_share: u16,
        least: String,
        least_share: u16,
    }
    INFO, "{service}: {policy} spreads connections over {} ({cause}): most go to {most} \
           ({}), fewest to {least} ({})", counted(*workers, "worker"), Pressure(*most_share), Pressure(*least_share);

    AllWorkersHot { service: String }
    WARN, "{service}: no worker has memory to spare, so all get equal weight";

    AllWorkersDown { service: String, fallback: String }
    WARN, "{service}: no worker is up any more; {}", fallback_outcome(fallback);

    /// `threshold = "auto"` has found its value.
    ThresholdLearned {
        service: String,
        threshold_bytes: u64,
        one: String,
        one_memory_available_bytes: Option<u64>,
        other: String,
        other_memory_available_bytes: Option<u64>,
    }
    INFO, "{service}: the automatic threshold is {} ({one} {}, {other} {})",
        Bytes(*threshold_bytes),
        Bytes(one_memory_available_bytes.unwrap_or(0)),
        Bytes(other_memory_available_bytes.unwrap_or(0));

    AdminCommandApplied {
        #[serde(flatten)]
        order: AdminCommand,
    }
    INFO, "{order}";

    PauseEnded {
        worker: String,
        /// The worker was silent and is up again; otherwise the time is over.
        is_back: bool,
    }
    INFO, "the pause of {worker} is over: {}",
        if *is_back { "it is back" } else { "its time has passed" };

    PrefixDenied {
        prefix: String,
        by: String,
        /// Milliseconds since 1970.
        at_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
    INFO, "{prefix} is denied by {by}{}", reason.as_ref().map(|it| format!(": {it}")).unwrap_or_default();

    PrefixAllowed { prefix: String, by: String }
    INFO, "{prefix} is no longer denied, by {by}";

    /// A sample of a worker's heartbeats.
    Heartbeat {
        worker: String,
        from: SocketAddr,
        memory_available_bytes: u64,
        memory_total_bytes: Option<u64>,
        /// Heartbeats of this worker since the last sample.
        heartbeats: u64,
    }
    LOG_ONLY, "heartbeat of {worker}: {} available ({} since the last line, from {from})",
        Bytes(*memory_available_bytes), counted(*heartbeats, "heartbeat");

    /// Heartbeats come from another address, perhaps from a second machine with the same name.
    HeartbeatSourceChanged { worker: String, from: IpAddr, before: IpAddr }
    WARN, "heartbeats of {worker} come from {from} now, and came from {before}: unless it has moved, two \
           machines have this name";

    HeartbeatRefused {
        reason: &'static str,
        from: SocketAddr,
        detail: String,
        /// Datagrams refused for this reason since the last event.
        datagrams: u64,
    }
    WARN, "refused {datagrams} datagrams ({reason}), the last from {from}: {detail}";

    /// The manager queried the agents about clients of services of mode `dsr` whose connections it does not know.
    ConnectionsLookedUp {
        /// A worker has the connection, and it continues.
        found: u64,
        /// No agent reported the connection within a second.
        not_found: u64,
        /// Not looked up, because of the rate limit.
        limited: u64,
    }
    INFO, "queried the agents about unknown connections: {found} continue at their workers, no worker has {not_found}{}",
        if *limited > 0 { format!(", {limited} were over the limit") } else { String::new() };

    ManagerStarted { version: &'static str, interfaces: Vec<AttachedInterface> }
    INFO, "the manager has started";

    ManagerStopped {}
    LOG_ONLY, "stopped; the packet programs continue with the last selection (memlb unload removes them)";

    /// The manager's loop did not run. The gap counts against no worker.
    ManagerStalled { gap_ms: u64 }
    WARN, "the manager did not run for {gap_ms} ms; that time counts against no worker";

    ConfigurationReloaded { changes: Vec<String> }
    INFO, "the configuration was read again: {}",
        if changes.is_empty() { "nothing has changed".to_owned() } else { changes.join("; ") };

    ReloadRefused { error: String }
    WARN, "reload: {error}";

    MapWriteFailed { error: String }
    WARN, "{error}; everything is written again every few seconds until it works";

    MapsWritten {}
    INFO, "all maps are written again, and are complete";

    InterfaceRemoved { interface: String }
    WARN, "interface {interface} is gone: its clients and workers cannot be reached until it is back";

    InterfaceRestored { interface: String }
    INFO, "interface {interface} is back; the programs are attached again";

    InterfaceNotAttached { interface: String, error: String }
    WARN, "programs cannot be attached to interface {interface}: {error}; trying again every second";

    InterfaceRenamed { interface: String, was: String }
    WARN, "interface {was} is called {interface} now; its programs stay attached. Use the new name in \
           manager.interfaces before the next start";

    /// Another interface has the configured name.
    InterfaceReplaced { interface: String, former: String }
    WARN, "another interface is called {interface} now; the programs are attached to it, too. The former one \
           is called {former}";

    /// Programs of another memlb receive the packets of an interface first.
    OtherManagerFirst { interface: String, programs: Vec<String>, manager: String }
    WARN, "at {interface}, programs of another memlb receive packets before this manager's: {} ({manager}); memlb \
           doctor says which manager serves what", programs.join(", ");

    /// This manager's programs receive the packets first again.
    OtherManagerGone { interface: String }
    INFO, "at {interface}, this manager's programs receive packets first again";

    /// The manager attached programs again that another program had detached.
    ProgramsRestored { interface: String, programs: Vec<&'static str> }
    WARN, "another program detached {} from interface {interface}; attached again. Find out which one it \
           was (tc, bpftool, another agent)", programs.join(", ");

    NatPortsScarce { service: String, worker: String, open: u64, ports: u64 }
    WARN, "worker {worker} of service {service} uses {open} of {ports} NAT ports: with all in use, memlb \
           refuses further connections to it. Add nat_sources, add workers, or set mode = \"routed\" for \
           the service";

    NatPortsSufficient { service: String, worker: String, open: u64, ports: u64 }
    INFO, "worker {worker} of service {service} uses {open} of {ports} NAT ports";

    PinsRestored { directory: String, pins: Vec<String> }
    WARN, "another program removed the pins of {} from {directory}; restored. `memlb unload` removes \
           memlb completely", pins.join(", ");

    PeerConnected { peer: String, address: Option<SocketAddr>, version: String, protocol: u16 }
    INFO, "peer {peer}{} is connected (memlb {version}, protocol {protocol})",
        address.map(|it| format!(" at {it}")).unwrap_or_default();

    PeerLost { peer: String, reason: String }
    WARN, "peer {peer} is lost: {reason}; it gets no records of new connections until it is back";

    /// One of the two refuses the other.
    PeerRefused { peer: String, reason: String }
    WARN, "no session with peer {peer}: {reason}";

    /// All connections are sent again.
    PeerIncomplete {
        peer: String,
        /// Records that had no room.
        lost_records: u64,
    }
    WARN, "peer {peer} does not know all connections of this manager ({lost_records} records had no room); they are \
           sent again";

    PeerComplete { peer: String }
    INFO, "peer {peer} knows all connections of this manager";

    /// This manager knows all connections of the peer.
    PeerConnectionsReceived { peer: String }
    INFO, "this manager knows all connections of peer {peer}";

    PeerConfigurationDiffers { peer: String }
    WARN, "the shared settings of peer {peer} differ from this manager's: compare what `memlb check --shared` prints \
           on both";

    PeerConfigurationMatches { peer: String }
    INFO, "the shared settings of peer {peer} are equal to this manager's";

    PeerFramesRefused {
        peer: String,
        reason: String,
        /// Frames refused for this reason since the last event.
        frames: u64,
    }
    WARN, "refused {frames} frames in the name of peer {peer} ({reason})";

    HandedOver {
        by: String,
        /// Peers may lack connections.
        forced: bool,
        /// Until every peer had acknowledged the last record.
        waited_ms: u64,
    }
    INFO, "handed over by {by}: the track file lowers this manager's priority{}",
        if *forced { ", although peers may lack connections" } else { "" };

    HandoverUndone { by: String }
    INFO, "the handover is undone by {by}: this manager has its usual priority again";

    /// Replaces events in the event log that had no room in its queue.
    EventsLost { count: u64 }
    LOG_ONLY, "{} missing in the event log", if *count == 1 { "1 event is".to_owned() } else { format!("{count} events are") };
}

/// An interface and how it is attached, at the manager's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttachedInterface {
    pub name: String,
    pub attachment: String,
    pub reason: String,
}

fn memory_text(available: Option<u64>, total: Option<u64>) -> String {
    let available = available.map(|it| format!(", {} available", Bytes(it)));
    let total = total.map(|it| format!(" of {}", Bytes(it)));
    available.into_iter().chain(total).collect()
}

fn changes_text(added: &[String], changed: &[String], removed: &[String]) -> String {
    let lists = [("added", added), ("changed", changed), ("removed", removed)];
    let lists = lists.iter().filter(|(_, names)| !names.is_empty());
    let texts: Vec<String> = lists
        .map(|(verb, names)| format!("{verb} {}", names.join(", ")))
        .collect();
    texts.join("; ")
}

fn switch_text(from: Option<&str>, to: &str) -> String {
    match from {
        Some(from) => format!("{from} -> {to}"),
        None => format!("{to} selected"),
    }
}

impl Event {
    /// Returns the service whose new connections go elsewhere from this event on.
    pub fn decided(&self) -> Option<&str> {
        match self {
            Self::SelectionChanged { service, .. }
            | Self::SelectionAdopted { service, .. }
            | Self::SharesChanged { service, .. } => Some(service),
            _ => None,
        }
    }

    /// Returns the event of a worker that is now in state `health`.
    pub(super) fn of_worker(
        worker: String,
        was: Health,
        health: Health,
        memory: Option<Memory>,
        silent_ms: u64,
        expected: bool,
    ) -> Option<Self> {
        let memory_available_bytes = memory.map(|memory| memory.available_bytes);
        Some(match health {
            // The other states are states of a backend only.
            Health::Unknown
            | Health::Draining
            | Health::Terminated
            | Health::Paused
            | Health::Ineligible
            | Health::Unreachable
            | Health::Failing => return None,
            Health::Up => Self::WorkerUp {
                worker,
                was,
                memory_available_bytes,
                memory_total_bytes: memory.and_then(|memory| memory.total_bytes),
            },
            Health::Down => Self::WorkerDown {
                worker,
                was,
                silent_ms,
                memory_available_bytes,
                expected,
            },
            Health::Unhealthy => Self::WorkerUnhealthy {
                worker,
                was,
                expected,
            },
            Health::Leaving => Self::WorkerLeaving { worker, was },
            Health::Maintenance => Self::WorkerMaintenance { worker, was },
        })
    }

    pub(super) fn of_selection(
        service: String,
        backend: Option<BackendId>,
        reason: &SelectionReason,
    ) -> Self {
        let to = reason.to.name.clone();
        if reason.rule == Rule::Adopted {
            return Self::SelectionAdopted {
                service,
                to,
                backend,
            };
        }
        Self::SelectionChanged {
            service,
            from: reason.from.as_ref().map(|from| from.name.clone()),
            to,
            backend,
            rule: reason.rule,
            reason: reason.to_string(),
            from_memory_available_bytes: reason.from.as_ref().and_then(|from| from.available_bytes),
            to_memory_available_bytes: reason.to.available_bytes,
            threshold_bytes: reason.threshold_bytes,
        }
    }
}
