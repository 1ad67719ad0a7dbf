//! The configuration to examine, and whether a running manager has another one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::Finding;
use crate::{
    config::{Changes, Config, ConfigError, Overrides, Service, Worker},
    control::{ConfigurationReply, ControlClient, Request},
    status::Status,
};
use lb_core::MANAGER;

/// Returns the file that a manager at this control socket was started with, if one runs and has one.
///
/// # Errors
///
/// Never: `None` if the manager does not answer, which another check reports.
pub async fn config_file(control_socket: &Path) -> Result<Option<PathBuf>> {
    let client = ControlClient::new(control_socket.to_owned());
    let status: Option<Status> = client.request(&Request::Status).await.ok();
    Ok(status.and_then(|status| status.config_file))
}

/// Returns the values that a manager at this control socket runs with, if one answers. Older versions do not answer.
///
/// # Errors
///
/// The values cannot be read back.
pub async fn in_force(control_socket: &Path) -> Result<Option<Config>, ConfigError> {
    let client = ControlClient::new(control_socket.to_owned());
    let reply: Option<ConfigurationReply> = client.request(&Request::Configuration).await.ok();
    let parse = |it: ConfigurationReply| {
        Config::parse(&it.toml, "the running manager", &Overrides::default(), None)
    };
    reply.map(parse).transpose()
}

/// Reports that the running manager's values are examined, and how they differ from those of its file.
pub fn in_force_finding(in_force: &Config, file: Option<(&Path, &Config)>) -> Finding {
    let examined = "examining the values that the running manager uses";
    let Some((path, file)) = file else {
        return Finding::ok("config", examined);
    };
    let changes = Changes::between(file, in_force);
    let differences: Vec<&str> = changes
        .accepted
        .iter()
        .chain(&changes.refused)
        .filter_map(|it| it.lines().next())
        .collect();
    let path = path.display();
    Finding::ok(
        "config",
        match differences.is_empty() {
            true => format!("{examined}, which are those of {path}"),
            false => format!(
                "{examined}; they differ from {path}, because of options of its command line or later changes of the \
                 file: {}",
                differences.join(", ")
            ),
        },
    )
}

/// Reports which configuration is examined.
pub fn finding(file: Option<&Path>, manager: Option<&Status>) -> Finding {
    let examined = match file {
        Some(file) => format!("examining {}", file.display()),
        None => "examining the built-in example (memlb check --example prints it)".to_owned(),
    };
    match manager.and_then(|status| status.config_file.as_deref()) {
        None => Finding::ok("config", examined),
        Some(other) if file.is_some_and(|file| is_same(file, other)) => {
            Finding::ok("config", format!("{examined}, which the manager runs with"))
        }
        Some(other) => Finding::warning(
            "config",
            format!("{examined}, but the manager runs with {}", other.display()),
            format!("memlb doctor --config {}", other.display()),
        ),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    one == other || real(one).is_some_and(|one| Some(one) == real(other))
}

/// Returns the configuration with the workers that have joined a running manager, or that sources gave it.
pub fn with_joined(config: &Config, manager: Option<&Status>) -> Config {
    let mut config = config.clone();
    for served in manager.into_iter().flat_map(|status| &status.services) {
        let mut services = config.services.iter_mut();
        let takes = |it: &Service| it.auto_join.is_some() || !it.worker_sources.is_empty();
        let Some(service) = services.find(|it| takes(it) && it.name == served.name) else {
            continue;
        };
        for backend in &served.backends {
            let seen = &backend.seen;
            let is_known = service.workers.iter().any(|it| it.name == seen.name);
            if let Ok(address) = seen.address.parse()
                && !is_known
                && seen.name != MANAGER
            {
                let worker = Worker::joining(seen.name.clone(), address);
                service.workers.push(worker);
            }
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Severity, heartbeats::tests::status};

    #[test]
    fn reports_what_is_examined_and_what_the_manager_has_instead() {
        let file = Path::new("/etc/memlb/memlb.toml");
        let mut status = status(Some(44), "up");
        assert_eq!(finding(None, None).severity, Severity::Ok);
        assert_eq!(finding(Some(file), Some(&status)).severity, Severity::Ok);
        status.config_file = Some(file.to_owned());
        assert_eq!(finding(Some(file), Some(&status)).severity, Severity::Ok);
        let other = finding(Some(Path::new("/other.toml")), Some(&status));
        assert_eq!(other.severity, Severity::Warning);
        let remedy = "memlb doctor --config /etc/memlb/memlb.toml";
        assert_eq!(other.remedy.as_deref(), Some(remedy));
    }

    #[test]
    fn names_what_differs_from_the_file() {
        let file = Config::example(&Overrides::default(), None).unwrap();
        let path = Path::new("/etc/memlb/memlb.toml");
        let same = in_force_finding(&file, Some((path, &file)));
        same.assert(Severity::Ok, "which are those of /etc/memlb/memlb.toml", "");
        let overrides = Overrides::default().option("failover.down_after", "3s");
        let in_force = Config::example(&overrides, None).unwrap();
        let found = in_force_finding(&in_force, Some((path, &file)));
        found.assert(Severity::Ok, "failover.down_after: 1500ms -> 3s", "");
    }

    #[test]
    fn examines_workers_that_joined() {
        let text = r#"
            manager.interfaces = ["eth1"]
            heartbeats.authentication = "enforce"
            [[service]]
            name = "web"
            address = "192.168.56.101:80"
            fallback = "reject"
            auto_join = { networks = ["192.168.56.0/24"], port = 8081 }
            "#;
        let config = Config::parse(text, "memlb.toml", &Overrides::default(), None).unwrap();
        let status = status(Some(44), "up");
        assert_eq!(with_joined(&config, None), config);
        let joined = with_joined(&config, Some(&status));
        assert_eq!(joined.services[0].workers[0].name, "worker1");
        // A configured worker is examined at its address in the file.
        assert_eq!(with_joined(&joined, Some(&status)), joined);
        // A worker of another manager has not joined a service without auto_join.
        let mut closed = config;
        closed.services[0].auto_join = None;
        assert_eq!(with_joined(&closed, Some(&status)), closed);
    }
}
