//! Writes a `memlb.toml` in which each line names the imported line.

use std::fmt::Write;
use std::net::SocketAddr;

use lb_core::{Mode, Protocol};

use super::service::{Import, ImportedService, Server, ServerCheck, SourceLine};
use crate::addresses::Addresses;

/// memlb's weights are from 1 % to 1000 %.
const MIN_WEIGHT: u32 = 1;

/// Writes the configuration; `source` names the file that was read.
pub fn write(
    import: &Import,
    source: &str,
    machine: &Addresses,
    interface: Option<&str>,
) -> String {
    let mut text = format!(
        "# Imported from {source}. `memlb check FILE` validates this file; `memlb check --example` explains every\n\
         # setting. Policy \"balanced\" would choose workers by their free memory.\n"
    );
    section(
        &mut text,
        "What memlb does not do, and what to do about it",
        notes(import),
    );
    section(
        &mut text,
        "An agent on each worker reports its memory and health",
        agents(import),
    );
    text.push_str("\n[manager]\n");
    text.push_str(&interfaces(import, machine, interface));
    for service in &import.services {
        text.push_str(&of_service(service));
    }
    text
}

/// Returns the notes, one text each.
pub fn notes(import: &Import) -> Vec<String> {
    let notes = import.notes.iter();
    notes
        .map(|it| {
            format!(
                "{}: {}: {}",
                it.origin.location,
                one_line(&it.origin.text),
                it.advice
            )
        })
        .collect()
}

/// Returns the command of the agent of each worker.
pub fn agents(import: &Import) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    let servers = import.services.iter().flat_map(|it| &it.servers);
    for server in servers.filter(|it| it.agent) {
        if seen.contains(&server.name.as_str()) {
            continue;
        }
        seen.push(&server.name);
        commands.push(agent(import, server));
    }
    commands
}

fn agent(import: &Import, server: &Server) -> String {
    let of_worker =
        |service: &&ImportedService| service.servers.iter().any(|it| it.name == server.name);
    let mut services = import.services.iter().filter(of_worker);
    let manager = services.clone().find_map(|it| it.ip);
    let manager = manager.map_or_else(|| "MANAGER".to_owned(), |ip| ip.to_string());
    let mut command = format!("memlb agent --manager {manager} --name {}", server.name);
    for service in services.by_ref().filter(|it| it.mode == Mode::Dsr) {
        let suffix = if service.protocol == Protocol::Udp {
            "/udp"
        } else {
            ""
        };
        let own = service.servers.iter().find(|it| it.name == server.name);
        let port = own.map_or(service.port, |it| it.address.port());
        _ = write!(command, " --dsr {}{suffix}={port}", listen(service));
    }
    if let Some(check) = &server.check {
        command.push_str(&check_options(check, server.address));
    }
    command
}

fn check_options(check: &ServerCheck, server: SocketAddr) -> String {
    let at = SocketAddr::new(server.ip(), check.port.unwrap_or(server.port()));
    let mut options = match &check.path {
        Some(path) => format!(" --check 'http://{at}{path}'"),
        None => format!(" --check tcp://{at}"),
    };
    let failures = check.failures.map(|it| it.to_string());
    for (option, value) in [
        ("--expect-status", &check.status),
        ("--check-interval", &check.interval),
        ("--check-timeout", &check.timeout),
        ("--check-failures", &failures),
    ] {
        if let Some(value) = value {
            _ = write!(options, " {option} {value}");
        }
    }
    options
}

fn interfaces(import: &Import, machine: &Addresses, interface: Option<&str>) -> String {
    let mut found: Vec<&str> = interface.into_iter().collect();
    let ips = import.services.iter().filter_map(|it| it.ip);
    if found.is_empty() {
        found.extend(
            ips.filter_map(|ip| machine.interface_of(ip))
                .filter(|it| *it != "lo"),
        );
        found.sort_unstable();
        found.dedup();
    }
    if found.is_empty() {
        return "interfaces = [\"eth0\"]  # no interface of this machine has a service's address: name those of the \
                manager here\n"
            .to_owned();
    }
    let quoted: Vec<String> = found.iter().map(|it| format!("\"{it}\"")).collect();
    format!(
        "interfaces = [{}]  # add the interface towards the workers, if it is another one\n",
        quoted.join(", ")
    )
}

fn of_service(service: &ImportedService) -> String {
    let mut text = format!("\n[[service]]\nname = \"{}\"\n", service.name);
    setting(
        &mut text,
        "address",
        &listen(service),
        &comment(&service.listen),
    );
    if service.protocol == Protocol::Udp {
        text.push_str("protocol = \"udp\"\n");
    }
    setting(
        &mut text,
        "policy",
        service.balance.policy,
        &one_line(&service.balance.reason),
    );
    match service.mode {
        Mode::Nat => {}
        Mode::Routed => setting(
            &mut text,
            "mode",
            "routed",
            "IPVS's NAT: workers route their answers through the manager",
        ),
        Mode::Dsr => setting(
            &mut text,
            "mode",
            "dsr",
            "IPVS's direct routing: needs --dsr at the agents, and no address on lo",
        ),
    }
    match &service.fallback {
        Some((address, origin)) => setting(
            &mut text,
            "fallback",
            &address.to_string(),
            &comment(origin),
        ),
        None => setting(
            &mut text,
            "fallback",
            "reject",
            "no server of last resort: refuse while no worker is up",
        ),
    }
    text.push_str("workers = [\n");
    for server in &service.servers {
        // The two tiers never share connections.
        let tier = service
            .servers
            .iter()
            .filter(|it| it.backup == server.backup);
        let most = tier.map(|it| it.weight).max().unwrap_or(1);
        let weight = match percent(server.weight, most) {
            100 => String::new(),
            percent => format!(", weight = \"{percent}%\""),
        };
        let backup = if server.backup { ", backup = true" } else { "" };
        let agent = if server.agent { "" } else { ", agent = false" };
        let limit = match server.max_connections {
            0 => String::new(),
            most => format!(", max_connections = {most}"),
        };
        _ = writeln!(
            text,
            "    {{ name = \"{}\", address = \"{}\"{weight}{backup}{agent}{limit} }},  # {}",
            server.name,
            server.address,
            comment(&server.origin)
        );
    }
    text.push_str("]\n");
    text
}

fn setting(text: &mut String, key: &str, value: &str, comment: &str) {
    _ = writeln!(text, "{key} = \"{value}\"  # {comment}");
}

/// Scales weights so that the largest is 100 %.
fn percent(weight: u32, most: u32) -> u32 {
    let share = (u64::from(weight) * 100).div_ceil(u64::from(most.max(1)));
    u32::try_from(share).unwrap_or(100).clamp(MIN_WEIGHT, 100)
}

fn listen(service: &ImportedService) -> String {
    match service.ip {
        Some(ip) => SocketAddr::new(ip, service.port).to_string(),
        None => format!("ADDRESS:{}", service.port),
    }
}

fn comment(origin: &SourceLine) -> String {
    format!("{}: {}", origin.location, one_line(&origin.text))
}

/// Makes a text fit for a comment or message: one line of at most 120 characters, without control characters.
fn one_line(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it })
        .collect();
    match clean.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}

fn section(text: &mut String, title: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    _ = writeln!(text, "#\n# {title}:");
    for line in lines {
        _ = writeln!(text, "#   {line}");
    }
}
