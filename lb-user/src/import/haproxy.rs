//! HAProxy: sections `frontend`, `backend`, `listen` and `defaults` (HAProxy's configuration manual, sections 2 to 5).

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc};

use lb_core::{Mode, Protocol};

use super::{
    error::ImportError,
    files::{directory_of, name_in},
    service::{
        Balance, Import, ImportedService, Server, ServerCheck, SourceLine, address, advice,
        host_and_port,
    },
    statement::{Location, Statement, words},
};

const SECTIONS: &str = "global defaults frontend backend listen peers resolvers userlist mailers cache program \
    http-errors ring log-forward fcgi-app";

/// Lines without an equal, by the beginning of the line, with the advice. The first match counts.
const NO_EQUAL: &str = "\
use_backend: memlb does not route by request: the backend of default_backend gets all of them
use-server: memlb does not route by request
cookie: memlb reads no cookies; policy \"source_hash\" keeps clients of one address with one worker
stick: policy \"source_hash\" keeps clients of one address with one worker
http-request, http-response, http-after-response, redirect: memlb reads no requests: the workers must do it, or HAProxy keeps this service
option forwardfor: in modes \"routed\" and \"dsr\" workers see the client's address
option redispatch: memlb repeats a SYN at another worker, and no request
option ssl-hello-chk, option smtpchk, option mysql-check: memlb's agent checks TCP and HTTP
tcp-request: memlb deny bans networks; it inspects no content
compression: memlb does not compress: let the workers do it
stats enable: memlb has a page at http_listen, memlb top, and Prometheus metrics";

const TLS: &str = "memlb does not terminate TLS: the workers must, or HAProxy keeps this service";
const PROXY: &str =
    "memlb sends no PROXY header; in modes \"routed\" and \"dsr\" workers see the client's address";

/// Parameters of `server` without an equal, with the advice.
const PARAMETERS_WITHOUT_EQUAL: &str = "\
ssl: memlb does not change data: clients' own TLS reaches the worker
send-proxy: memlb sends no PROXY header; in modes \"routed\" and \"dsr\" workers see the client's address
send-proxy-v2: memlb sends no PROXY header; in modes \"routed\" and \"dsr\" workers see the client's address
agent-check: memlb agent reports memory and health by itself
cookie: memlb reads no cookies; policy \"source_hash\" keeps clients of one address with one worker
slowstart: the service's ramp_up does this for all workers";

/// Parameters of `server` that have a value.
const WITH_VALUE: &str = "addr agent-addr agent-inter agent-port agent-send alpn ca-file check-alpn check-proto check-sni ciphers \
    cookie crt downinter error-limit fall fastinter id init-addr inter log-proto maxconn maxqueue minconn \
    namespace observe on-error on-marked-down pool-max-conn port proto redir resolvers rise slowstart sni \
    source track verify weight";

/// Reads the file.
///
/// # Errors
///
/// When a quote is not closed.
pub fn import(text: &str, path: &Path) -> Result<Import, ImportError> {
    let sections = sections(text, path)?;
    let mut import = Import::default();
    let backends: BTreeMap<&str, &HaproxySection> = sections
        .iter()
        .filter(|it| matches!(it.kind(), "backend" | "listen"))
        .map(|it| (it.header.argument(0), it))
        .collect();
    for section in sections
        .iter()
        .filter(|it| matches!(it.kind(), "frontend" | "listen"))
    {
        section.report(&mut import);
        let Some(backend) = section.backend(&backends, &mut import) else {
            continue;
        };
        if backend.header != section.header {
            backend.report(&mut import);
        }
        let balance = backend.balance(&mut import);
        for bind in section.own("bind") {
            for one in bind.argument(0).split(',') {
                let Some((ip, port)) = bind_address(one, bind, &mut import) else {
                    continue;
                };
                let servers = backend.servers(port, &mut import);
                import.services.push(ImportedService {
                    name: section.header.argument(0).to_owned(),
                    ip,
                    port,
                    listen: bind.into(),
                    protocol: Protocol::Tcp,
                    mode: Mode::Nat,
                    balance: balance.clone(),
                    servers,
                    fallback: None,
                });
            }
        }
    }
    Ok(import)
}

/// A section, with the lines of the last `defaults` before it.
struct HaproxySection {
    header: Statement,
    lines: Vec<Statement>,
    defaults: Arc<[Statement]>,
}

fn sections(text: &str, path: &Path) -> Result<Vec<HaproxySection>, ImportError> {
    let file = name_in(&directory_of(path), path);
    let mut sections: Vec<HaproxySection> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let location = Location {
            file: Arc::clone(&file),
            line: index + 1,
        };
        let words = words(line, &location)?;
        if words.is_empty() {
            continue;
        }
        let statement = Statement {
            location,
            words,
            block: Vec::new(),
        };
        if is_among(SECTIONS, statement.name()) {
            let defaults = sections.iter().rfind(|it| it.kind() == "defaults");
            sections.push(HaproxySection {
                defaults: defaults
                    .map_or_else(|| Arc::from([]), |it| Arc::from(it.lines.as_slice())),
                header: statement,
                lines: Vec::new(),
            });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(statement);
        }
    }
    Ok(sections)
}

impl HaproxySection {
    fn kind(&self) -> &str {
        self.header.name()
    }

    /// Returns the section's own lines of this name.
    fn own<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Statement> {
        self.lines.iter().filter(move |it| it.name() == name)
    }

    /// Returns the last line that begins with these words, or that of the defaults.
    fn setting(&self, beginning: &[&str]) -> Option<&Statement> {
        let begins = |it: &&Statement| {
            it.words.len() >= beginning.len() && it.words.iter().zip(beginning).all(|(a, b)| a == b)
        };
        self.lines
            .iter()
            .rfind(begins)
            .or_else(|| self.defaults.iter().rfind(begins))
    }

    fn report(&self, import: &mut Import) {
        for line in self.lines.iter().chain(self.defaults.iter()) {
            let text = line.to_string();
            if let Some(advice) = advice(NO_EQUAL, |beginning| text.starts_with(beginning)) {
                import.add_note(line, advice);
            }
        }
    }

    /// Returns the section that has the servers of this one.
    fn backend<'a>(
        &'a self,
        backends: &BTreeMap<&str, &'a Self>,
        import: &mut Import,
    ) -> Option<&'a Self> {
        let unconditional = self.own("use_backend").find(|it| it.arguments().len() == 1);
        let Some(chosen) = unconditional.or_else(|| self.setting(&["default_backend"])) else {
            if self.own("server").next().is_none() {
                return import.skip(
                    &self.header,
                    "this section has neither default_backend nor servers; it is left out",
                );
            }
            return Some(self);
        };
        let found = backends.get(chosen.argument(0)).copied();
        if found.is_none() {
            import.add_note(
                chosen,
                "this file has no such backend; the frontend is left out",
            );
        }
        found
    }

    fn balance(&self, import: &mut Import) -> Balance {
        let Some(balance) = self.setting(&["balance"]) else {
            return Balance {
                policy: "round_robin",
                reason: "round robin is HAProxy's default".to_owned(),
            };
        };
        let policy = match balance.argument(0) {
            "roundrobin" | "static-rr" => "round_robin",
            "leastconn" | "random" => "least_connections",
            "source" => "source_hash",
            _ => {
                import.add_note(balance, "memlb reads no requests; policy \"balanced\" chooses by memory and connections");
                "balanced"
            }
        };
        Balance {
            policy,
            reason: balance.to_string(),
        }
    }

    /// Returns the servers of a service at `port`.
    fn servers(&self, port: u16, import: &mut Import) -> Vec<Server> {
        let defaults: Vec<String> = self
            .setting(&["default-server"])
            .map(|it| it.arguments().to_vec())
            .unwrap_or_default();
        for template in self.own("server-template") {
            import.add_note(
                template,
                "memlb finds no workers by DNS: let agents join by auto_join, or name the workers",
            );
        }
        let check = self.http_check();
        self.own("server")
            .filter_map(|line| server(line, &defaults, check.as_ref(), port, import))
            .collect()
    }

    /// Returns the HTTP check that `option httpchk` and `http-check` describe.
    fn http_check(&self) -> Option<ServerCheck> {
        let option = self.setting(&["option", "httpchk"])?;
        let path = option
            .arguments()
            .iter()
            .skip(1)
            .find(|it| it.starts_with('/'));
        let sent = self.setting(&["http-check", "send"]);
        let sent = sent.and_then(|it| value_of(it.arguments(), "uri"));
        let status = self.setting(&["http-check", "expect", "status"]);
        Some(ServerCheck {
            path: Some(sent.or(path.cloned()).unwrap_or_else(|| "/".to_owned())),
            status: status.map(|it| it.argument(2).to_owned()),
            ..ServerCheck::default()
        })
    }
}

fn is_among(words: &str, word: &str) -> bool {
    words.split(' ').any(|it| it == word)
}

fn value_of(words: &[String], name: &str) -> Option<String> {
    let at = words.iter().position(|it| it == name)?;
    words.get(at + 1).cloned()
}

/// The parameters of a server, those of `default-server` first.
struct Parameters<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Parameters<'a> {
    fn new(words: impl Iterator<Item = &'a String>) -> Self {
        let mut words = words.map(String::as_str);
        let mut parameters = Vec::new();
        while let Some(name) = words.next() {
            let value = match is_among(WITH_VALUE, name) {
                true => words.next().unwrap_or_default(),
                false => "",
            };
            parameters.push((name, value));
        }
        Self(parameters)
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rfind(|it| it.0 == name).map(|it| it.1)
    }

    /// Whether the flag is set, and not reset by a later `no-`.
    fn flag(&self, name: &str) -> bool {
        let flags = self.0.iter().map(|it| it.0);
        let mut flags = flags.filter(|it| it.strip_prefix("no-").unwrap_or(it) == name);
        flags.next_back().is_some_and(|it| it == name)
    }
}

fn server(
    line: &Statement,
    defaults: &[String],
    http: Option<&ServerCheck>,
    port: u16,
    import: &mut Import,
) -> Option<Server> {
    let own = line.arguments().get(2..).unwrap_or_default();
    let parameters = Parameters::new(defaults.iter().chain(own));
    if parameters.flag("disabled") {
        return import.skip(
            line,
            "left out, because it is disabled: add it, and drain it (memlb maintenance)",
        );
    }
    let without_equal = PARAMETERS_WITHOUT_EQUAL.lines();
    for (name, advice) in without_equal.filter_map(|row| row.split_once(": ")) {
        if parameters.flag(name) {
            import.add_note(line, advice);
        }
    }
    let (host, own_port) = host_and_port(strip_family(line.argument(1)));
    if host.starts_with('/') || host.contains('@') {
        return import.skip(
            line,
            "a worker is another machine, not a UNIX socket; left out",
        );
    }
    let weight = import.weight(line, parameters.value("weight").unwrap_or("1"));
    let check = parameters.flag("check").then(|| ServerCheck {
        port: parameters.value("port").and_then(|it| it.parse().ok()),
        interval: parameters.value("inter").map(duration),
        failures: parameters.value("fall").and_then(|it| it.parse().ok()),
        ..http.cloned().unwrap_or_default()
    });
    let max_connections = parameters
        .value("maxconn")
        .map_or(0, |given| import.max_connections(line, given));
    match address(host, own_port.unwrap_or(port)) {
        Ok(address) => Some(Server {
            name: line.argument(0).to_owned(),
            address,
            weight,
            check,
            backup: parameters.flag("backup"),
            agent: true,
            max_connections,
            origin: SourceLine::from(line),
        }),
        Err(why) => import.skip(line, why),
    }
}

/// Converts a duration: without a unit, HAProxy means milliseconds; its units are also memlb's.
fn duration(text: &str) -> String {
    match text.bytes().all(|it| it.is_ascii_digit()) {
        true => format!("{text}ms"),
        false => text.to_owned(),
    }
}

fn strip_family(address: &str) -> &str {
    let stripped = address
        .strip_prefix("ipv4@")
        .or_else(|| address.strip_prefix("ipv6@"));
    stripped.unwrap_or(address)
}

/// Returns the address and port of a `bind`, or notes why there is none.
fn bind_address(one: &str, bind: &Statement, import: &mut Import) -> Option<(Option<IpAddr>, u16)> {
    for option in bind.arguments().iter().skip(1) {
        match option.as_str() {
            "ssl" => import.add_note(bind, TLS),
            "accept-proxy" => import.add_note(bind, PROXY),
            _ => {}
        }
    }
    let (host, port) = one.rsplit_once(':').unwrap_or((one, ""));
    let Ok(port) = port.parse::<u16>() else {
        return import.skip(
            bind,
            "memlb serves single ports of IP addresses; this one is left out",
        );
    };
    Some((import.listen_ip(bind, strip_family(host))?, port))
}
