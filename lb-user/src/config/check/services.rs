//! The rules of each `[[service]]`, and of services among each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_core::{
    DEFAULT_HOLD, Endpoint, MANAGER, Mode, NO_BACKEND, Policy, Pressure, Protocol, SpreadSettings,
    Threshold,
};
use toml::Spanned;

use super::auto_join;
use super::limits::Room;
use super::reader::{Located, Place, Reader, Setting};
use crate::config::error::{Origin, ProblemKind};
use crate::config::file::{Given, ServiceTable, WorkerTable};
use crate::config::overrides::Overrides;
use crate::config::values;
use crate::config::{AutoJoin, Manager, Service, Worker};
use crate::heartbeat::{Authentication, check_name};

const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A service as far as it could be read, with the places that later checks point to.
struct Draft {
    name: Option<(String, Place)>,
    address: Option<Located>,
    fallback: Option<Located>,
    rejects: bool,
    workers: Vec<DraftWorker>,
    auto_join: Option<AutoJoin>,
    protocol: Protocol,
    rest: (Policy, Threshold, Duration, SpreadSettings, Mode),
}

struct DraftWorker {
    name: Option<(String, Place)>,
    address: Option<Located>,
    weight_percent: u32,
}

pub(super) fn check(
    reader: &mut Reader<'_>,
    tables: Vec<Spanned<ServiceTable>>,
    overrides: &Overrides,
    room: &Room,
    manager: &Manager,
    authentication: Authentication,
) -> Vec<Service> {
    count(reader, &tables, room);
    let drafts: Vec<Draft> = tables
        .into_iter()
        .map(|table| draft(reader, table, overrides, authentication))
        .collect();
    distinct_services(reader, &drafts);
    for draft in &drafts {
        distinct_workers(reader, draft);
        one_family(reader, draft);
        fallback(reader, draft, &drafts);
        managers_own(reader, draft, manager);
        workers_elsewhere(reader, draft, &drafts);
    }
    distinct_endpoints(reader, &drafts);
    // What could not be read was refused above, so that nothing is lost here unnoticed.
    drafts.into_iter().filter_map(Draft::finish).collect()
}

impl Draft {
    fn endpoint(&self) -> Option<Endpoint> {
        Some(Endpoint {
            address: self.address.as_ref()?.address,
            protocol: self.protocol,
        })
    }

    fn mode(&self) -> Mode {
        self.rest.4
    }

    fn finish(self) -> Option<Service> {
        let (policy, threshold, hold, spread, mode) = self.rest;
        let workers = self.workers.into_iter();
        Some(Service {
            name: self.name?.0,
            address: self.address?.address,
            protocol: self.protocol,
            policy,
            threshold,
            hold,
            spread,
            mode,
            fallback: match self.rejects {
                true => None,
                false => Some(self.fallback?.address),
            },
            auto_join: self.auto_join,
            workers: workers
                .map(|worker| {
                    Some(Worker {
                        name: worker.name?.0,
                        address: worker.address?.address,
                        weight_percent: worker.weight_percent,
                    })
                })
                .collect::<Option<_>>()?,
        })
    }
}

fn count(reader: &mut Reader<'_>, tables: &[Spanned<ServiceTable>], room: &Room) {
    let Room { services, backends } = room;
    if tables.is_empty() {
        let place = reader.nowhere("service");
        reader.refuse(
            &place,
            ProblemKind::NoService,
            "no service is configured",
            "at least one [[service]] table",
            "copy the one of the example, memlb.toml, and write your addresses into it",
        );
    }
    if let Some(table) = tables.get(services.value as usize) {
        let place = reader.at("service", table);
        reader.refuse(
            &place,
            ProblemKind::TooManyServices,
            format!("{} services are configured", tables.len()),
            format!("at most {}", services.value),
            "raise services in [limits], or serve the rest from another manager",
        );
    }
    let needed: usize = tables
        .iter()
        .map(|table| {
            let workers = table.get_ref().workers.as_ref();
            // One more for the fallback.
            1 + workers.map_or(0, |workers| workers.get_ref().len())
        })
        .sum();
    // Entry 0 of the kernel's table means "none".
    let room = backends.value.saturating_sub(1) as usize;
    if needed > room {
        reader.refuse(
            &backends.place,
            ProblemKind::TooManyBackends,
            format!(
                "{needed} backends are configured (the workers of every service and a fallback \
                 each), but there is room for {room}"
            ),
            format!("backends = {} or more", needed + 1),
            "raise backends in [limits], or remove workers",
        );
    }
}

fn draft(
    reader: &mut Reader<'_>,
    table: Spanned<ServiceTable>,
    overrides: &Overrides,
    authentication: Authentication,
) -> Draft {
    let usual = SpreadSettings::default();
    let whole = reader.at("service", &table);
    let table = table.into_inner();
    let name = name(reader, "service.name", &whole, table.name, "\"web\"");
    let address = machine(
        reader,
        "service.address",
        &whole,
        table.address,
        "\"192.168.56.101:80\"",
    );
    let auto_join = auto_join::check(reader, table.auto_join, address.as_ref(), authentication);
    let protocol = reader.choice(
        "service.protocol",
        Setting::file(table.protocol),
        &Protocol::ALL.map(|protocol| (protocol.name(), protocol)),
        &["sctp"],
    );
    let policy = reader.choice(
        "service.policy",
        Setting::flag_or_file("--policy", &overrides.policy, table.policy),
        &Policy::ALL.map(|policy| (policy.name(), policy)),
        &[],
    );
    let threshold = reader.parse(
        "service.threshold",
        Setting::flag_or_file("--threshold", &overrides.threshold, table.threshold),
        values::threshold,
        Threshold::Auto,
    );
    let hold = reader.duration_or_none(
        "service.hold",
        Setting::file(table.hold),
        DEFAULT_HOLD,
        LONGEST,
    );
    let spread = SpreadSettings {
        rebalance_interval: reader
            .duration(
                "service.rebalance_interval",
                Setting::file(table.rebalance_interval),
                usual.rebalance_interval,
                LONGEST,
            )
            .value,
        reserve_percent: reader
            .parse(
                "service.reserve",
                Setting::file(table.reserve),
                |text| values::percent(text, 0..=90),
                usual.reserve_percent,
            )
            .value,
        pressure_limit: reader
            .parse(
                "service.pressure_limit",
                Setting::file(table.pressure_limit),
                |text| values::percent(text, 1..=100).map(Pressure::percent),
                usual.pressure_limit,
            )
            .value,
        ramp_up: reader
            .duration(
                "service.ramp_up",
                Setting::file(table.ramp_up),
                usual.ramp_up,
                LONGEST,
            )
            .value,
        max_share: reader
            .parse(
                "service.max_share",
                Setting::file(table.max_share),
                values::max_share,
                usual.max_share,
            )
            .value,
    };
    let mode = reader.choice(
        "service.mode",
        Setting::file(table.mode),
        &Mode::ALL.map(|mode| (mode.name(), mode)),
        &[],
    );
    let rejects = (table.fallback.as_ref()).is_some_and(|it| it.get_ref() == "reject");
    Draft {
        name,
        address,
        fallback: match rejects {
            true => None,
            false => reader.address(
                "service.fallback",
                &whole,
                table.fallback,
                "\"192.168.56.101:8080\", or \"reject\"",
            ),
        },
        rejects,
        workers: workers(reader, &whole, table.workers, auto_join.is_some()),
        auto_join,
        protocol: protocol.unwrap_or_default(),
        rest: (
            policy.unwrap_or_default(),
            threshold.value,
            hold.value,
            spread,
            mode.unwrap_or_default(),
        ),
    }
}

fn workers(
    reader: &mut Reader<'_>,
    whole: &Place,
    given: Given<Vec<Spanned<WorkerTable>>>,
    others_join: bool,
) -> Vec<DraftWorker> {
    let place = given
        .as_ref()
        .map(|given| reader.at("service.workers", given));
    let tables = given.map(Spanned::into_inner).unwrap_or_default();
    if tables.is_empty() && !others_join {
        reader.refuse(
            &place.unwrap_or_else(|| Place {
                key: "service.workers".to_owned(),
                origin: whole.origin.clone(),
            }),
            ProblemKind::NoWorker,
            "the service has no workers",
            "workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]",
            "name at least one worker",
        );
    }
    let draft = |table: Spanned<WorkerTable>| {
        let whole = reader.at("service.workers", &table);
        let table = table.into_inner();
        let name = name(
            reader,
            "service.workers.name",
            &whole,
            table.name,
            "\"worker1\"",
        );
        if let Some((name, place)) = &name
            && [MANAGER, NO_BACKEND].contains(&name.as_str())
        {
            reader.refuse(
                place,
                ProblemKind::BadName,
                format!("{name:?} stands for a service's fallback"),
                "another name",
                "rename the worker, here and in its agent's --name",
            );
        }
        let weight = reader.parse(
            "service.workers.weight",
            Setting::file(table.weight),
            |text| values::percent(text, 1..=1_000),
            100,
        );
        DraftWorker {
            name,
            weight_percent: weight.value,
            address: machine(
                reader,
                "service.workers.address",
                &whole,
                table.address,
                "\"192.168.56.103:8081\"",
            ),
        }
    };
    tables.into_iter().map(draft).collect()
}

fn name(
    reader: &mut Reader<'_>,
    key: &str,
    whole: &Place,
    given: Given<String>,
    example: &str,
) -> Option<(String, Place)> {
    let (name, place) = reader.required(key, whole, given, example)?;
    if let Err(problem) = check_name(&name) {
        reader.refuse(
            &place,
            ProblemKind::BadName,
            problem.to_string(),
            "1 to 64 ASCII letters, digits and . _ -, the first of them no dot",
            "choose another name",
        );
        return None;
    }
    Some((name, place))
}

/// Reads an address that packets can be sent to.
fn machine(
    reader: &mut Reader<'_>,
    key: &str,
    whole: &Place,
    given: Given<String>,
    example: &str,
) -> Option<Located> {
    let located = reader.address(key, whole, given, example)?;
    let ip = located.address.ip();
    let (is_broadcast, is_link_local) = match ip {
        IpAddr::V4(ip) => (ip.is_broadcast(), false),
        IpAddr::V6(ip) => (false, ip.is_unicast_link_local()),
    };
    let unfit = [
        (ip.is_unspecified(), "stands for any address"),
        (ip.is_loopback(), "is a loopback address"),
        (ip.is_multicast(), "is a multicast address"),
        (is_broadcast, "is the broadcast address"),
        (
            is_link_local,
            "is a link-local address, which many links may have",
        ),
    ];
    if let Some((_, why)) = unfit.iter().find(|(unfit, _)| *unfit) {
        reader.refuse(
            &located.place,
            ProblemKind::BadAddress,
            format!("{ip} {why}"),
            "the address of one machine on the network",
            "write the address by which the machine is reached there",
        );
        return None;
    }
    Some(located)
}

fn distinct_services(reader: &mut Reader<'_>, drafts: &[Draft]) {
    let names = drafts.iter().filter_map(|draft| draft.name.as_ref());
    distinct(
        reader,
        names.map(|(name, place)| (name.clone(), place)),
        ProblemKind::DuplicateServiceName,
        "a service",
    );
    let endpoints = drafts.iter().filter_map(|draft| {
        let place = &draft.address.as_ref()?.place;
        Some((draft.endpoint()?.to_string(), place))
    });
    distinct(
        reader,
        endpoints,
        ProblemKind::DuplicateServiceAddress,
        "a service",
    );
}

fn distinct_workers(reader: &mut Reader<'_>, draft: &Draft) {
    let workers = draft.workers.iter();
    let names = workers.filter_map(|worker| worker.name.as_ref());
    distinct(
        reader,
        names.map(|(name, place)| (name.clone(), place)),
        ProblemKind::DuplicateWorkerName,
        "a worker of this service",
    );
    let workers = draft.workers.iter();
    let addresses = workers.filter_map(|worker| worker.address.as_ref());
    distinct(
        reader,
        addresses.map(|located| (located.address.to_string(), &located.place)),
        ProblemKind::DuplicateBackendAddress,
        "a worker of this service",
    );
}

fn distinct<'a>(
    reader: &mut Reader<'_>,
    values: impl Iterator<Item = (String, &'a Place)>,
    kind: ProblemKind,
    whose: &str,
) {
    let mut seen: BTreeMap<String, &Place> = BTreeMap::new();
    for (value, place) in values {
        let Some(first) = seen.get(&value) else {
            seen.insert(value, place);
            continue;
        };
        let line = match &first.origin {
            Origin::Line { line, .. } => format!(" (line {line})"),
            Origin::File { .. } | Origin::Flag(_) | Origin::Set(_) => String::new(),
        };
        reader.refuse(
            place,
            kind,
            format!("{value:?} already belongs to {whose}{line}"),
            "each one different",
            "correct or remove one of the two",
        );
    }
}

/// Packets are not translated from one family to the other.
fn one_family(reader: &mut Reader<'_>, draft: &Draft) {
    let Some(service) = &draft.address else {
        return;
    };
    let service = service.address.ip();
    for worker in draft.workers.iter().filter_map(|w| w.address.as_ref()) {
        let ip = worker.address.ip();
        if ip.is_ipv4() == service.is_ipv4() {
            continue;
        }
        let (is, needed) = (values::family(ip), values::family(service));
        reader.refuse(
            &worker.place,
            ProblemKind::FamiliesMixed,
            format!("{ip} is an {is} address, and the service's, {service}, an {needed} one"),
            format!("the worker's {needed} address"),
            format!(
                "write its {needed} address, or add a service with an {is} address for the same \
                 workers"
            ),
        );
    }
}

/// The manager's own server takes over by a change of port alone.
fn fallback(reader: &mut Reader<'_>, draft: &Draft, drafts: &[Draft]) {
    let (Some(service), Some(fallback)) = (&draft.address, &draft.fallback) else {
        return;
    };
    let own = Endpoint {
        address: fallback.address,
        protocol: draft.protocol,
    };
    if drafts.iter().any(|other| other.endpoint() == Some(own)) {
        reader.refuse(
            &fallback.place,
            ProblemKind::FallbackIsService,
            format!("{} is itself a service's address", fallback.address),
            "the port at which the manager's own server really listens",
            "give that server another port, as 8080, and write it here",
        );
    } else if fallback.address.ip() != service.address.ip() {
        reader.refuse(
            &fallback.place,
            ProblemKind::FallbackElsewhere,
            format!(
                "{} is not on the service's address, {}",
                fallback.address,
                service.address.ip()
            ),
            "the service's own address with another port",
            format!(
                "write \"{}\"; a server elsewhere is a worker",
                SocketAddr::new(service.address.ip(), fallback.address.port())
            ),
        );
    }
}

/// Where the manager itself listens, nobody else is served: its heartbeats would go to the workers.
fn managers_own(reader: &mut Reader<'_>, draft: &Draft, manager: &Manager) {
    let (own, what, setting) = match draft.protocol {
        Protocol::Udp => (
            Some(manager.heartbeat_listen),
            "receives heartbeats",
            "heartbeat_listen",
        ),
        Protocol::Tcp => (manager.http_listen, "shows its web page", "http_listen"),
    };
    let Some(own) = own else {
        return;
    };
    for located in [&draft.address, &draft.fallback].into_iter().flatten() {
        if !is_taken_by(located.address, own) {
            continue;
        }
        let wildcard = match own.ip().is_unspecified() {
            true => ", which is at every address of it",
            false => "",
        };
        reader.refuse(
            &located.place,
            ProblemKind::ManagersOwnAddress,
            format!(
                "{} is where the manager itself {what} ({setting} = \"{own}\"{wildcard})",
                located.address
            ),
            "an address and port at which the manager does not listen",
            format!(
                "choose another port here, or set {setting} to another port, or to one other address \
                 of the manager"
            ),
        );
    }
}

/// Whether who listens at `own` gets what is sent to `address`; `[::]` takes IPv4, too.
fn is_taken_by(address: SocketAddr, own: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() && (own.is_ipv6() || address.is_ipv4());
    address.port() == own.port() && (is_any || address.ip() == own.ip())
}

/// Packets to a worker leave the manager, so that its own addresses cannot be one.
fn workers_elsewhere(reader: &mut Reader<'_>, draft: &Draft, drafts: &[Draft]) {
    for worker in draft.workers.iter().filter_map(|w| w.address.as_ref()) {
        let ip = worker.address.ip();
        let mut services = drafts.iter().filter_map(|draft| draft.address.as_ref());
        if services.any(|service| service.address.ip() == ip) {
            reader.refuse(
                &worker.place,
                ProblemKind::WorkerOnManager,
                format!("{ip} is the manager's own address"),
                "the address of another machine",
                "a server on the manager can only be the fallback",
            );
        }
    }
}

/// A worker that sees its clients' own addresses and ports cannot tell by which service they came: neither
/// could the manager, of an answer that passes here.
fn distinct_endpoints(reader: &mut Reader<'_>, drafts: &[Draft]) {
    let mut seen: BTreeMap<(Protocol, SocketAddr), (Mode, &str)> = BTreeMap::new();
    for draft in drafts.iter().filter(|draft| draft.mode() != Mode::Nat) {
        let service = draft.name.as_ref().map_or("", |(name, _)| name);
        for worker in draft.workers.iter().filter_map(|w| w.address.as_ref()) {
            let of_this = (draft.mode(), service);
            let (other_mode, other) = *seen
                .entry((draft.protocol, worker.address))
                .or_insert(of_this);
            let is_routed = [other_mode, draft.mode()].contains(&Mode::Routed);
            if other != service && is_routed {
                reader.refuse(
                    &worker.place,
                    ProblemKind::SharedEndpoint,
                    format!(
                        "{} already serves service {other}, and mode \"routed\" could not tell the two apart",
                        worker.address
                    ),
                    "a port of the worker's for each service of mode \"routed\"",
                    "let the worker's server listen on another port, too, and write it here; or set mode = \
                     \"nat\" for one of the services",
                );
            }
        }
    }
}
