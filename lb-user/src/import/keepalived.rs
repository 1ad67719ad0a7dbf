//! keepalived: `virtual_server` and its `real_server`s, that is IPVS (keepalived.conf(5), "Virtual server(s)").

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lb_core::{Mode, Protocol};

use super::{
    error::ImportError,
    files::{directory_of, name_in},
    service::{Balance, Import, ImportedService, Server, ServerCheck, SourceLine},
    statement::{Statement, Terminator, parse},
};

/// Reads the file.
///
/// # Errors
///
/// When a quote or a brace is not closed.
pub fn import(text: &str, path: &Path) -> Result<Import, ImportError> {
    let name = name_in(&directory_of(path), path);
    let statements = parse(text, &name, &['!', '#'], Terminator::Newline)?;
    let mut import = Import::default();
    for statement in &statements {
        match statement.name() {
            "virtual_server" => {
                for (ip, port, origin) in addresses(statement, &statements, &mut import) {
                    let service = service(statement, ip, port, origin, &mut import);
                    import.services.extend(service);
                }
            }
            "vrrp_instance" => import.add_note(
                statement,
                "memlb moves no addresses: keepalived continues to do that; take only virtual_server out of its file",
            ),
            "include" => import.add_note(statement, "import reads one file: import this one, too"),
            _ => {}
        }
    }
    Ok(import)
}

/// Returns the addresses of `virtual_server IP PORT` or `virtual_server group NAME`.
fn addresses<'a>(
    server: &'a Statement,
    statements: &'a [Statement],
    import: &mut Import,
) -> Vec<(IpAddr, u16, &'a Statement)> {
    if server.argument(0) == "fwmark" {
        import.add_note(
            server,
            "memlb serves addresses with ports, not firewall marks; this one is left out",
        );
        return Vec::new();
    }
    let lines: Vec<(&Statement, &[String])> = if server.argument(0) == "group" {
        let name = server.argument(1);
        let group = statements
            .iter()
            .find(|it| it.name() == "virtual_server_group" && it.argument(0) == name);
        let Some(group) = group else {
            import.add_note(
                server,
                "this file has no such virtual_server_group; the server is left out",
            );
            return Vec::new();
        };
        group
            .block
            .iter()
            .map(|it| (it, it.words.as_slice()))
            .collect()
    } else {
        vec![(server, server.arguments())]
    };
    let mut found = Vec::new();
    for (line, words) in lines {
        match ip_and_port(words) {
            Some(address) => found.push((address.ip(), address.port(), line)),
            None => import.add_note(
                line,
                "expected an address and a port that is not 0; this one is left out",
            ),
        }
    }
    found
}

fn ip_and_port(words: &[String]) -> Option<SocketAddr> {
    let [ip, port, ..] = words else { return None };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(ip.parse().ok()?, port))
}

fn service(
    statement: &Statement,
    ip: IpAddr,
    port: u16,
    listen: &Statement,
    import: &mut Import,
) -> Option<ImportedService> {
    let value = |names: &[&str]| {
        let mut lines = statement
            .block
            .iter()
            .filter(|it| names.contains(&it.name()));
        lines.next_back()
    };
    let protocol = match value(&["protocol"]).map(|it| it.argument(0)) {
        None => {
            import.add_note(
                statement,
                "keepalived treats a virtual_server without protocol as UDP, and so does memlb import; for TCP, \
                 add protocol TCP",
            );
            Protocol::Udp
        }
        Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => {
            return import.skip(
                statement,
                "memlb balances TCP and UDP; this server is left out",
            );
        }
    };
    let mode = match value(&["lb_kind", "lvs_method"]).map(|it| (it, it.argument(0))) {
        None | Some((_, "NAT")) => Mode::Routed,
        Some((_, "DR")) => Mode::Dsr,
        Some((line, _)) => {
            import.add_note(
                line,
                "memlb has no tunnels; mode \"dsr\" needs workers on the manager's own link",
            );
            Mode::Dsr
        }
    };
    for line in &statement.block {
        let advice = match line.name() {
            "quorum" | "alpha" | "omega" | "ha_suspend" | "hysteresis" => {
                "memlb has no quorum; down_after and up_after decide"
            }
            "persistence_granularity" => "policy \"source_hash\" takes the whole address",
            "ops" => "datagrams of one port of a client go to one worker, see datagram_idle",
            _ => continue,
        };
        import.add_note(line, advice);
    }
    let mut service = ImportedService {
        name: value(&["virtualhost"])
            .map_or_else(|| format!("{ip}-{port}"), |it| it.argument(0).to_owned()),
        ip: Some(ip),
        port,
        listen: SourceLine::from(listen),
        protocol,
        mode,
        balance: balance(
            statement,
            value(&["persistence_timeout"]),
            value(&["lb_algo", "lvs_sched"]),
            import,
        ),
        servers: Vec::new(),
        fallback: None,
    };
    if let Some(sorry) = value(&["sorry_server"]) {
        service.fallback = ip_and_port(sorry.arguments()).map(|it| (it, SourceLine::from(sorry)));
    }
    let interval = value(&["delay_loop"]).map(|it| seconds(it.argument(0)));
    for real in statement.children("real_server") {
        service
            .servers
            .extend(server(real, interval.as_deref(), import));
    }
    Some(service)
}

fn balance(
    statement: &Statement,
    persistence: Option<&Statement>,
    scheduler: Option<&Statement>,
    import: &mut Import,
) -> Balance {
    if let Some(line) = persistence {
        return Balance {
            policy: "source_hash",
            reason: line.to_string(),
        };
    }
    let policy = match scheduler.map_or("wlc", |it| it.argument(0)) {
        "rr" | "wrr" => "round_robin",
        "lc" | "wlc" | "sed" | "nq" => "least_connections",
        "sh" | "mh" => "source_hash",
        _ => {
            import.add_note(
                scheduler.unwrap_or(statement),
                "memlb has no such scheduler; policy \"balanced\" chooses by memory and connections",
            );
            "balanced"
        }
    };
    Balance {
        policy,
        reason: scheduler.map_or_else(
            || "keepalived's default is wlc".to_owned(),
            Statement::to_string,
        ),
    }
}

fn server(real: &Statement, interval: Option<&str>, import: &mut Import) -> Option<Server> {
    let Some(at) = ip_and_port(real.arguments()) else {
        return import.skip(
            real,
            "expected an address and a port that is not 0; this server is left out",
        );
    };
    let (mut weight, mut max_connections) = (1, 0);
    let mut check = None;
    for line in &real.block {
        match line.name() {
            "weight" => weight = import.weight(line, line.argument(0)),
            "HTTP_GET" | "TCP_CHECK" => check = Some(of_checker(line, interval)),
            "uthreshold" => max_connections = import.max_connections(line, line.argument(0)),
            "lthreshold" => import.add_note(line, "a full worker takes connections again as soon as one has ended"),
            "inhibit_on_failure" => import.add_note(line, "memlb resets the connections of a worker that is down"),
            "notify_up" | "notify_down" => import.add_note(line, "memlb events --follow --json gives every change to a script"),
            name if name.ends_with("_CHECK") || name == "SSL_GET" => import.add_note(
                line,
                "memlb's agent checks TCP and HTTP: for anything else let the agent's service stop, or use memlb drain",
            ),
            _ => {}
        }
    }
    Some(Server {
        name: at.ip().to_string(),
        address: at,
        weight,
        check,
        backup: false,
        agent: true,
        max_connections,
        origin: SourceLine::from(real),
    })
}

fn of_checker(line: &Statement, interval: Option<&str>) -> ServerCheck {
    let text = |name: &str| line.child(name).map(|it| it.argument(0));
    let url = line.child("url");
    let of_url = |name: &str| {
        url.and_then(|it| it.child(name))
            .map(|it| it.argument(0).to_owned())
    };
    let retries = text("retry").or_else(|| text("nb_get_retry"));
    ServerCheck {
        path: (line.name() == "HTTP_GET").then(|| of_url("path").unwrap_or_else(|| "/".to_owned())),
        port: text("connect_port").and_then(|it| it.parse().ok()),
        status: of_url("status_code"),
        interval: text("delay_loop")
            .map(seconds)
            .or_else(|| interval.map(str::to_owned)),
        timeout: text("connect_timeout").map(seconds),
        failures: retries
            .and_then(|it| it.parse::<u32>().ok())
            .map(|it| it.saturating_add(1)),
    }
}

/// Converts keepalived's seconds, which may have decimals.
fn seconds(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            format!("{}ms", (seconds * 1000.0).round())
        }
        _ => text.to_owned(),
    }
}
