//! The services, servers and notes that an imported configuration becomes, whatever its format.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use lb_core::{MANAGER, Mode, NO_BACKEND, Protocol};

use super::statement::{Location, Statement};
use crate::addresses::Addresses;

/// The greatest value of `max_connections`.
const MAX_CONNECTIONS: u32 = 1 << 24;

/// A line of the imported configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    pub location: Location,
    /// The words of the line.
    pub text: String,
}

impl From<&Statement> for SourceLine {
    fn from(statement: &Statement) -> Self {
        Self {
            location: statement.location.clone(),
            text: statement.to_string(),
        }
    }
}

/// A line that memlb has no equal for, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub origin: SourceLine,
    pub advice: String,
}

/// The most similar policy of memlb, and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    pub policy: &'static str,
    pub reason: String,
}

/// The check of a server by its agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerCheck {
    /// The path of an HTTP request; `None` for a TCP connection.
    pub path: Option<String>,
    /// The port, if it is not the server's own.
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
    pub check: Option<ServerCheck>,
    /// Whether it takes connections only while no other server can.
    pub backup: bool,
    /// Whether an agent runs on its machine.
    pub agent: bool,
    /// The maximum number of open connections; 0: no limit.
    pub max_connections: u32,
    pub origin: SourceLine,
}

/// One address that clients use, and the servers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedService {
    pub name: String,
    /// `None` means every address of the machine.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub listen: SourceLine,
    pub protocol: Protocol,
    pub mode: Mode,
    pub balance: Balance,
    pub servers: Vec<Server>,
    /// The server of last resort.
    pub fallback: Option<(SocketAddr, SourceLine)>,
}

/// The imported configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    pub services: Vec<ImportedService>,
    pub notes: Vec<Note>,
}

impl Import {
    pub fn add_note(&mut self, origin: impl Into<SourceLine>, advice: impl Into<String>) {
        let note = Note {
            origin: origin.into(),
            advice: advice.into(),
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Notes why the line is not imported.
    pub fn skip<T>(
        &mut self,
        origin: impl Into<SourceLine>,
        advice: impl Into<String>,
    ) -> Option<T> {
        self.add_note(origin, advice);
        None
    }

    /// Parses the maximum number of connections of a server, and notes the outcome of further ones.
    pub fn max_connections(&mut self, line: &Statement, given: &str) -> u32 {
        match given.parse() {
            Ok(0) => 0,
            Ok(most) if most <= MAX_CONNECTIONS => {
                self.add_note(
                    line,
                    format!(
                        "max_connections = {most}: further connections do not wait, but go to other workers, then to \
                         the fallback, or are refused (workers_full)"
                    ),
                );
                most
            }
            _ => {
                self.add_note(
                    line,
                    format!("{given} is not a valid max_connections; left out"),
                );
                0
            }
        }
    }

    /// Parses the weight of a server, and notes that 0 means drained.
    pub fn weight(&mut self, line: &Statement, given: &str) -> u32 {
        let weight = given.parse().unwrap_or(1);
        if weight == 0 {
            let advice = "weight 0 means drained: memlb drain keeps new connections away";
            self.add_note(line, advice);
        }
        weight
    }

    /// Parses the address that a service listens at; the inner `None` means every address. Notes why it cannot be one.
    pub fn listen_ip(&mut self, line: &Statement, host: &str) -> Option<Option<IpAddr>> {
        match host {
            "" | "*" | "0.0.0.0" => Some(None),
            "::" | "[::]" => self.skip(
                line,
                "a service has one address: for IPv6 add a service with the IPv6 address of the manager",
            ),
            host => match address(host, 0) {
                Ok(address) => Some(Some(address.ip())),
                Err(why) => self.skip(line, why),
            },
        }
    }

    /// Replaces "every address" by an address, makes names unique, and removes servers that cannot be workers and
    /// services without workers.
    pub fn resolve(&mut self, machine: &Addresses, address: Option<IpAddr>) {
        let own = address.or_else(|| first_address(machine));
        for mut service in std::mem::take(&mut self.services) {
            let Some(ip) = service.ip.or(own) else {
                self.add_note(
                    service.listen,
                    "this is every address of the machine, and it has none but loopback: pass --address ADDRESS",
                );
                continue;
            };
            service.ip = Some(ip);
            self.select_workers(&mut service, ip, machine);
            if service.servers.is_empty() {
                self.add_note(
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
                self.add_note(
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

    /// Removes the servers that cannot be workers of a service at `ip`; one on this machine becomes the fallback.
    fn select_workers(&mut self, service: &mut ImportedService, ip: IpAddr, machine: &Addresses) {
        for server in std::mem::take(&mut service.servers) {
            let at = server.address.ip();
            if at.is_loopback() || at == ip || machine.interface_of(at).is_some() {
                let fallback = SocketAddr::new(ip, server.address.port());
                self.add_note(
                    server.origin.clone(),
                    format!(
                        "this server runs on the manager, which can be the fallback only: it becomes the fallback \
                         {fallback}, and must listen there"
                    ),
                );
                service.fallback.get_or_insert((fallback, server.origin));
            } else if at.is_ipv4() != ip.is_ipv4() {
                self.add_note(
                    server.origin,
                    format!("memlb does not translate between IPv4 and IPv6: not a worker of {ip}"),
                );
            } else if service
                .servers
                .iter()
                .any(|it| it.address == server.address)
            {
                self.add_note(server.origin, "this server is named twice; left out");
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
        service: &mut ImportedService,
        ip: IpAddr,
        address: SocketAddr,
        origin: SourceLine,
    ) {
        if service.mode == Mode::Dsr {
            self.add_note(
                origin,
                "mode \"dsr\" needs an agent on every worker: run one there, and add it as a worker with backup = true",
            );
            return;
        }
        let is_known = service.servers.iter().any(|it| it.address == address);
        if address.ip() == ip || address.is_ipv4() != ip.is_ipv4() || is_known {
            self.add_note(
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

    /// Returns the worker's name: the one that its address has in an earlier service, else a new one.
    fn worker_name(&self, server: &Server, service: &ImportedService) -> String {
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

/// Returns `name` in the form that memlb allows. If it is taken, adds the port or a number.
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

/// Replaces the characters that memlb's names cannot have. They have 1 to 64 ASCII letters, digits and `. _ -`.
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

/// Looks up the advice in a table. A row has names, separated by commas, and after a colon the advice.
pub fn advice(table: &'static str, is_it: impl Fn(&str) -> bool) -> Option<&'static str> {
    let rows = table.lines().filter_map(|row| row.split_once(": "));
    let mut found = rows.filter(|(names, _)| names.split(',').any(|name| is_it(name.trim())));
    found.next().map(|(_, advice)| advice)
}

/// Returns the first address of `host`, which may be a name.
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

/// Splits `HOST:PORT`, `[IPv6]:PORT`, `:PORT` or `HOST`; the port is `None` if it is not a number.
pub fn host_and_port(text: &str) -> (&str, Option<u16>) {
    if let Some((host, port)) = text.rsplit_once(':')
        && (!host.contains(':') || host.ends_with(']'))
        && let Ok(port) = port.parse()
    {
        return (host, Some(port));
    }
    (text, None)
}
