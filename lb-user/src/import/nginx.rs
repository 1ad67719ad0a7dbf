//! nginx: `upstream`, `server` and `proxy_pass` of the contexts `http` and `stream`
//! (<https://nginx.org/en/docs/>, modules `ngx_http_upstream_module` and `ngx_stream_upstream_module`).

use std::path::{Path, PathBuf};

use lb_core::{Mode, Protocol};

use super::{
    error::ImportError,
    files::{directory_of, matching, name_in, read},
    service::{
        Balance, Import, ImportedService, Server, SourceLine, address, advice, host_and_port,
    },
    statement::{Statement, Terminator, parse},
};

/// A limit for a file that includes itself; nginx has none.
const MAX_INCLUDES: usize = 200;

/// Directives without an equal, by the beginning of their names, with the advice. The first match counts.
const NO_EQUAL: &str = "\
ssl_: memlb does not terminate TLS: the workers must, or nginx keeps this service
proxy_ssl: memlb does not change data: the client's own TLS reaches the worker
fastcgi_pass, uwsgi_pass, scgi_pass, grpc_pass, memcached_pass: memlb does not change data: the worker must speak HTTP itself
proxy_cache: memlb keeps no cache: let the workers or a cache behind memlb do it
proxy_set_header, proxy_protocol, add_header: memlb changes no data; in modes \"routed\" and \"dsr\" workers see the client's address
proxy_next_upstream: memlb repeats no request; it repeats a SYN at another worker
proxy_bind: memlb's mode \"routed\" keeps the client's address
limit_req, limit_conn, limit_rate: memlb limits no requests: let the workers do it
auth_: memlb reads no requests: let the workers authenticate
rewrite, return, sub_filter: memlb reads no requests: let the workers do it
gzip: memlb does not compress: let the workers do it
root: memlb serves no files: let a server on a worker or on the manager do it
sticky: policy \"source_hash\" keeps clients of one address with one worker
health_check: memlb's agent checks the server on its own machine: memlb agent --check";

/// Reads the file and what it includes.
///
/// # Errors
///
/// When a file cannot be read or parsed.
pub fn import(text: &str, path: &Path) -> Result<Import, ImportError> {
    let mut import = Import::default();
    let mut includes = Includes {
        // nginx takes relative paths from the directory of its main file.
        directory: directory_of(path),
        read: 0,
    };
    let statements = includes.parse(text, path, &mut import)?;
    for context in statements.iter().filter(|it| it.name() == "http") {
        Context::new(context, false).services(&mut import);
    }
    for context in statements.iter().filter(|it| it.name() == "stream") {
        Context::new(context, true).services(&mut import);
    }
    // The content of a file of conf.d belongs to `http`.
    if statements
        .iter()
        .any(|it| matches!(it.name(), "server" | "upstream"))
    {
        let context = Statement {
            location: statements[0].location.clone(),
            words: vec!["http".to_owned()],
            block: statements,
        };
        Context::new(&context, false).services(&mut import);
    }
    Ok(import)
}

struct Includes {
    directory: PathBuf,
    read: usize,
}

impl Includes {
    fn parse(
        &mut self,
        text: &str,
        path: &Path,
        import: &mut Import,
    ) -> Result<Vec<Statement>, ImportError> {
        let name = name_in(&self.directory, path);
        let statements = parse(text, &name, &['#'], Terminator::Semicolon)?;
        self.replace(statements, import)
    }

    /// Replaces each `include` by the statements of the included files.
    fn replace(
        &mut self,
        statements: Vec<Statement>,
        import: &mut Import,
    ) -> Result<Vec<Statement>, ImportError> {
        let mut replaced = Vec::new();
        for mut statement in statements {
            if statement.name() != "include" {
                statement.block = self.replace(statement.block, import)?;
                replaced.push(statement);
                continue;
            }
            let pattern = statement.argument(0).to_owned();
            if pattern.ends_with("mime.types") {
                continue;
            }
            let mut files = matching(&self.directory.join(&pattern));
            files.retain(|it| it.is_file());
            if files.is_empty() && !pattern.contains('*') {
                import.add_note(
                    &statement,
                    "this file does not exist here; what it contains is not imported",
                );
            }
            for file in files {
                self.read += 1;
                if self.read > MAX_INCLUDES {
                    return Err(ImportError::TooManyIncludes(
                        statement.location,
                        MAX_INCLUDES,
                    ));
                }
                let text = read(&file)?;
                replaced.extend(self.parse(&text, &file, import)?);
            }
        }
        Ok(replaced)
    }
}

/// `http` or `stream`; the names of upstreams are valid within it.
struct Context<'a> {
    context: &'a Statement,
    is_stream: bool,
}

impl<'a> Context<'a> {
    fn new(context: &'a Statement, is_stream: bool) -> Self {
        Self { context, is_stream }
    }

    fn services(&self, import: &mut Import) {
        report(&self.context.block, import);
        // The default server of an address comes first: nginx uses it for requests that match no other one.
        let mut servers: Vec<&Statement> = self.context.children("server").collect();
        servers.sort_by_key(|it| !it.children("listen").any(is_default));
        for server in servers {
            report(&server.block, import);
            if let Some(pass) = self.proxy_pass(server, import) {
                self.server(server, pass, import);
            } else {
                import.add_note(server, "this server has no proxy_pass; it is left out");
            }
        }
    }

    /// Returns the `proxy_pass` of the server, that of `location /` in `http`.
    fn proxy_pass(&self, server: &'a Statement, import: &mut Import) -> Option<&'a Statement> {
        if self.is_stream {
            return server.child("proxy_pass");
        }
        let mut locations: Vec<&Statement> = server
            .children("location")
            .filter(|it| {
                report(&it.block, import);
                it.child("proxy_pass").is_some()
            })
            .collect();
        // The most general one first.
        locations.sort_by_key(|it| (it.arguments().len(), it.argument(0).len()));
        let mut locations = locations.into_iter();
        let first = locations.next();
        for other in locations {
            import.add_note(other, "memlb does not route by path: all requests of this address go to one set of workers");
        }
        if let Some(location) = first.filter(|it| it.argument(0) != "/") {
            import.add_note(
                location,
                "memlb does not route by path: this location's workers get all requests",
            );
        }
        first
            .and_then(|it| it.child("proxy_pass"))
            .or_else(|| server.child("proxy_pass"))
    }

    fn server(&self, server: &Statement, pass: &Statement, import: &mut Import) {
        let target = pass.argument(0);
        let (scheme, rest) = target.split_once("://").unwrap_or(("", target));
        let host = rest.split('/').next().unwrap_or_default();
        if target.contains('$') {
            import.add_note(
                pass,
                "memlb cannot take the worker from a variable; the server is left out",
            );
            return;
        }
        if rest.len() > host.len() + 1 {
            import.add_note(
                pass,
                "memlb does not change paths: the workers get the path that the client sent",
            );
        }
        if scheme == "https" {
            import.add_note(
                pass,
                "memlb does not change data: clients' own TLS reaches the workers",
            );
        }
        let upstream = self
            .context
            .children("upstream")
            .find(|it| it.argument(0) == host);
        let (name, servers, balance) = match upstream {
            Some(upstream) => {
                report(&upstream.block, import);
                (host, servers(upstream, import), balance(upstream, import))
            }
            None => {
                let default_port = if scheme == "https" { 443 } else { 80 };
                let servers = server_at(host, default_port, &[], pass, import);
                (host, servers.into_iter().collect(), default_balance())
            }
        };
        if let Some(names) = server
            .child("server_name")
            .filter(|it| it.argument(0) != "_")
        {
            import.add_note(names, "memlb does not route by host: all requests of this address go to one set of workers");
        }
        let mut listens: Vec<Statement> = server.children("listen").cloned().collect();
        if listens.is_empty() {
            let words = ["listen", "80"].map(str::to_owned).to_vec();
            listens.push(Statement {
                words,
                ..server.clone()
            });
        }
        for listen in &listens {
            let Some((ip, port)) = listen_address(listen, import) else {
                continue;
            };
            import.services.push(ImportedService {
                name: name.to_owned(),
                ip,
                port,
                listen: listen.into(),
                protocol: match listen
                    .arguments()
                    .iter()
                    .any(|it| it == "udp" || it == "quic")
                {
                    true => Protocol::Udp,
                    false => Protocol::Tcp,
                },
                mode: Mode::Nat,
                balance: balance.clone(),
                servers: servers.clone(),
                fallback: None,
            });
        }
    }
}

fn is_default(listen: &Statement) -> bool {
    listen.arguments().iter().any(|it| it == "default_server")
}

/// Returns the address and port, or notes why there is none.
fn listen_address(
    listen: &Statement,
    import: &mut Import,
) -> Option<(Option<std::net::IpAddr>, u16)> {
    for option in listen.arguments() {
        let directive = match option.as_str() {
            "ssl" => "ssl_",
            "proxy_protocol" => "proxy_protocol",
            _ => continue,
        };
        if let Some(advice) = no_equal(directive) {
            import.add_note(listen, advice);
        }
    }
    let given = listen.argument(0);
    let (host, port) = match given.parse::<u16>() {
        Ok(port) => ("*", Some(port)),
        Err(_) => host_and_port(given),
    };
    let port = match port {
        Some(port) => port,
        None if given.contains("unix:")
            || given.rsplit(':').next().is_some_and(|it| it.contains('-')) =>
        {
            return import.skip(
                listen,
                "memlb serves single ports of IP addresses; this one is left out",
            );
        }
        None => 80,
    };
    Some((import.listen_ip(listen, host)?, port))
}

fn servers(upstream: &Statement, import: &mut Import) -> Vec<Server> {
    let servers = upstream.children("server");
    servers
        .filter_map(|it| server_at(it.argument(0), 80, it.arguments(), it, import))
        .collect()
}

fn server_at(
    given: &str,
    default_port: u16,
    parameters: &[String],
    statement: &Statement,
    import: &mut Import,
) -> Option<Server> {
    let (mut weight, mut backup, mut max_connections) = (1, false, 0);
    for parameter in parameters.iter().skip(1) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "weight" => weight = value.parse().unwrap_or(1),
            "down" => {
                return import.skip(
                    statement,
                    "left out, because it is down: add it, and drain it (memlb drain)",
                );
            }
            "backup" => backup = true,
            "max_fails" | "fail_timeout" => import.add_note(
                statement,
                "memlb counts handshakes that fail (failing_after), and its agent checks the server: memlb agent --check",
            ),
            "max_conns" => max_connections = import.max_connections(statement, value),
            "slow_start" => {
                import.add_note(statement, "the service's ramp_up does this for all workers");
            }
            _ => {}
        }
    }
    let (host, port) = host_and_port(given);
    if host.starts_with("unix:") {
        return import.skip(
            statement,
            "a worker is another machine, not a UNIX socket; left out",
        );
    }
    match address(host, port.unwrap_or(default_port)) {
        Ok(address) => Some(Server {
            name: host.trim_matches(['[', ']']).to_owned(),
            address,
            weight,
            check: None,
            backup,
            agent: true,
            max_connections,
            origin: SourceLine::from(statement),
        }),
        Err(why) => import.skip(statement, why),
    }
}

fn default_balance() -> Balance {
    Balance {
        policy: "round_robin",
        reason: "round robin is nginx's default".to_owned(),
    }
}

fn balance(upstream: &Statement, import: &mut Import) -> Balance {
    let methods = ["least_conn", "least_time", "ip_hash", "hash", "random"];
    let Some(method) = upstream
        .block
        .iter()
        .find(|it| methods.contains(&it.name()))
    else {
        return default_balance();
    };
    let by_client = ["$remote_addr", "$binary_remote_addr"].contains(&method.argument(0));
    let policy = match method.name() {
        "ip_hash" => "source_hash",
        "hash" if by_client => "source_hash",
        "hash" => {
            import.add_note(
                method,
                "memlb reads no requests: only the client's address can choose the worker",
            );
            "source_hash"
        }
        _ => "least_connections",
    };
    Balance {
        policy,
        reason: method.to_string(),
    }
}

/// Notes the directives that have no equal.
fn report(block: &[Statement], import: &mut Import) {
    for statement in block {
        if let Some(advice) = no_equal(statement.name()) {
            import.add_note(statement, advice);
        }
    }
}

fn no_equal(directive: &str) -> Option<&'static str> {
    advice(NO_EQUAL, |name| {
        let prefix = format!("{}_", name.trim_end_matches('_'));
        directive == name || directive.starts_with(&prefix)
    })
}
