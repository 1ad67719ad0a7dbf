//! What the three formats have in common: services, their servers, and what has no equal in memlb.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use lb_core::{MANAGER, Mode, NO_BACKEND, Protocol};

use super::statement::{Location, Statement};
use crate::addresses::Addresses;

/// The greatest value of `max_connections`.
const MAX_CONNECTIONS: u32 = 1 << 24;

/// What a line of the other configuration becomes, with the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub location: Location,
    /// The words of the line.
    pub text: String,
}

impl From<&Statement> for Origin {
    fn from(statement: &Statement) -> Self {
        Self {
            location: statement.location.clone(),
            text: statement.to_string(),
        }
    }
}

/// What memlb does not do, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub origin: Origin,
    pub advice: String,
}

/// A policy of memlb, and why it is the nearest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    pub policy: &'static str,
    pub reason: String,
}

/// How the agent of a server has to check it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    /// The path of an HTTP request; nothing for a TCP connection.
    pub path: Option<String>,
    /// The port, where it is not the server's own.
    pub port: Option<u16>,
    /// The option `--expect-status`.
    pub status: Option<String>,
    /// The option `--check-interval`.
    pub interval: Option<String>,
    /// The option `--check-timeout`.
    pub timeout: Option<String>,
    /// The option `--check-failures`.
    pub failures: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    /// Relative to the other servers of the service.
    pub weight: u32,
    pub check: Option<Check>,
    /// It takes connections only while no other server can.
    pub backup: bool,
    /// Whether an agent is to run beside it.
    pub agent: bool,
    /// Most open connections; 0: no limit.
    pub max_connections: u32,
    pub origin: Origin,
}

/// One address that clients use, and the servers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// Nothing: every address of the machine.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub listen: Origin,
    pub protocol: Protocol,
    pub mode: Mode,
    pub balance: Balance,
    pub servers: Vec<Server>,
    /// The server of last resort.
    pub fallback: Option<(SocketAddr, Origin)>,
}

/// Everything that was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    pub services: Vec<Service>,
    pub notes: Vec<Note>,
}

impl Import {
    pub fn note(&mut self, origin: impl Into<Origin>, advice: impl Into<String>) {
        let note = Note {
            origin: origin.into(),
            advice: advice.into(),
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Notes why the line is left out.
    pub fn leave_out<T>(
        &mut self,
        origin: impl Into<Origin>,
        advice: impl Into<String>,
    ) -> Option<T> {
        self.note(origin, advice);
        None
    }

    /// Returns the most connections of a server, and notes what becomes of further ones.
    pub fn max_connections(&mut self, line: &Statement, given: &str) -> u32 {
        match given.parse() {
            Ok(0) => 0,
            Ok(most) if most <= MAX_CONNECTIONS => {
                self.note(
                    line,
                    format!(
                        "max_connections = {most}: further connections do not wait, but go to other workers, then to \
                         the fallback, or are refused (workers_full)"
                    ),
                );
                most
            }
            _ => {
                self.note(
                    line,
                    format!("{given} is no limit that max_connections takes; left out"),
                );
                0
            }
        }
    }

    /// Fills in what the files leave open: the address behind "every address", names that are taken, and servers
    /// that memlb cannot have as workers.
    pub fn resolve(&mut self, machine: &Addresses, address: Option<IpAddr>) {
        let own = address.or_else(|| first_address(machine));
        for mut service in std::mem::take(&mut self.services) {
            let Some(ip) = service.ip.or(own) else {
                self.note(
                    service.listen,
                    "this is every address of the machine, and it has none but loopback: pass --address ADDRESS",
                );
                continue;
            };
            service.ip = Some(ip);
            self.sort_servers(&mut service, ip, machine);
            if service.servers.is_empty() {
                self.note(
                    service.listen,
                    format!(
                        "no server of {} can be a worker; the service is left out",
                        service.name
                    ),
                );
                continue;
            }
            let taken = self.services.iter().any(|it| {
                (it.ip, it.port, it.protocol) == (service.ip, service.port, service.protocol)
            });
            if taken {
                self.note(
                    service.listen,
                    "another service has this address already: memlb does not distinguish requests by host or \
                     path; this one is left out",
                );
                continue;
            }
            service.name = self.unused_name(&service.name, service.port);
            self.services.push(service);
        }
        self.notes
            .sort_by(|a, b| a.origin.location.cmp(&b.origin.location));
    }

    /// Takes out the servers that cannot be workers of a service at `ip`.
    fn sort_servers(&mut self, service: &mut Service, ip: IpAddr, machine: &Addresses) {
        for server in std::mem::take(&mut service.servers) {
            let at = server.address.ip();
            if at.is_loopback() || at == ip || machine.interface_of(at).is_some() {
                let fallback = SocketAddr::new(ip, server.address.port());
                self.note(
                    server.origin.clone(),
                    format!(
                        "this server runs on the manager, which can be the fallback only: it becomes the fallback \
                         {fallback}, and must listen there"
                    ),
                );
                service.fallback.get_or_insert((fallback, server.origin));
            } else if at.is_ipv4() != ip.is_ipv4() {
                self.note(
                    server.origin,
                    format!("memlb does not translate between IPv4 and IPv6: not a worker of {ip}"),
                );
            } else if service
                .servers
                .iter()
                .any(|it| it.address == server.address)
            {
                self.note(server.origin, "the same server once more; left out");
            } else {
                let name = self.worker_name(&server, service);
                service.servers.push(Server { name, ..server });
            }
        }
        if let Some((address, origin)) = service.fallback.take() {
            if address.ip() == ip && address.port() != service.port {
                service.fallback = Some((address, origin));
            } else {
                self.add_sorry_server(service, ip, address, origin);
            }
        }
    }

    /// A server of last resort on another machine is a backup without an agent.
    fn add_sorry_server(
        &mut self,
        service: &mut Service,
        ip: IpAddr,
        address: SocketAddr,
        origin: Origin,
    ) {
        if service.mode == Mode::Dsr {
            self.note(
                origin,
                "mode \"dsr\" needs an agent on every worker: run one there, and add it as a worker with backup = true",
            );
            return;
        }
        let is_known = service.servers.iter().any(|it| it.address == address);
        if address.ip() == ip || address.is_ipv4() != ip.is_ipv4() || is_known {
            self.note(
                origin,
                "it cannot serve beside the service's own address and workers; without it, new connections are \
                 refused while no worker is up",
            );
            return;
        }
        let server = Server {
            name: "sorry".to_owned(),
            address,
            weight: 1,
            check: None,
            backup: true,
            agent: false,
            max_connections: 0,
            origin,
        };
        let name = self.worker_name(&server, service);
        service.servers.push(Server { name, ..server });
    }

    /// Returns a name that is this machine's alone: that of an earlier service, if there is one.
    fn worker_name(&self, server: &Server, service: &Service) -> String {
        let ip = server.address.ip();
        let is_here = |name: &str| service.servers.iter().any(|it| it.name == name);
        let known = self.services.iter().flat_map(|it| &it.servers);
        if let Some(known) = known
            .clone()
            .find(|it| it.address.ip() == ip && !is_here(&it.name))
        {
            return known.name.clone();
        }
        unused(&server.name, server.address.port(), |name| {
            is_here(name)
                || known
                    .clone()
                    .any(|it| it.name == name && it.address.ip() != ip)
        })
    }

    fn unused_name(&self, name: &str, port: u16) -> String {
        unused(name, port, |name| {
            self.services.iter().any(|it| it.name == name)
        })
    }
}

fn first_address(machine: &Addresses) -> Option<IpAddr> {
    let mut usable = machine.0.iter().map(|(ip, _)| *ip).filter(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    let first = usable.clone().find(IpAddr::is_ipv4);
    first.or_else(|| usable.next())
}

/// Returns `name` as memlb allows it, with the port or a number behind it where it is taken.
fn unused(name: &str, port: u16, is_taken: impl Fn(&str) -> bool) -> String {
    let name = valid_name(name);
    let with_port = format!("{name}-{port}");
    let numbered = (2_u32..).map(|number| format!("{name}-{port}-{number}"));
    [name.clone(), with_port]
        .into_iter()
        .chain(numbered)
        .find(|name| !is_taken(name))
        .unwrap_or_default()
}

/// Replaces what memlb's names may not contain: they have 1 to 64 ASCII letters, digits and `. _ -`.
fn valid_name(name: &str) -> String {
    // Room for the port and a number.
    let short = name.chars().take(50);
    let valid: String = short
        .map(|it| match it {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => it,
            _ => '-',
        })
        .collect();
    match valid.trim_matches(['.', '-']) {
        "" => "service".to_owned(),
        MANAGER | NO_BACKEND => format!("{valid}-1"),
        name => name.to_owned(),
    }
}

/// Looks up the advice in a table whose rows are names, separated by commas, and the advice after a colon.
pub fn advice(table: &'static str, is_it: impl Fn(&str) -> bool) -> Option<&'static str> {
    let rows = table.lines().filter_map(|row| row.split_once(": "));
    let mut found = rows.filter(|(names, _)| names.split(',').any(|name| is_it(name.trim())));
    found.next().map(|(_, advice)| advice)
}

/// Returns the address of `host`, which may be a name, and the first one if it has several.
///
/// # Errors
///
/// Returns why there is none, as a sentence for a note.
pub fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("{host} has no address here ({error}): add the worker by hand"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    let first = found.first().copied();
    first.ok_or_else(|| format!("{host} has no address here: add the worker by hand"))
}

/// Splits `HOST:PORT`, `[IPv6]:PORT`, `:PORT` or `HOST`; the port is nothing where it is not a number.
pub fn host_and_port(text: &str) -> (&str, Option<u16>) {
    if let Some((host, port)) = text.rsplit_once(':')
        && (!host.contains(':') || host.ends_with(']'))
        && let Ok(port) = port.parse()
    {
        return (host, Some(port));
    }
    (text, None)
}
