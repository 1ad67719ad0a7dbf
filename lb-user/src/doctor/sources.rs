//! The sources of workers: those without a list, those with a problem, and entries that are not workers.

use std::collections::BTreeSet;

use super::Finding;
use crate::{config::Config, status::Status};

pub fn findings(config: &Config, status: &Status) -> Vec<Finding> {
    let services = config.services.iter();
    let expected: BTreeSet<&str> = services
        .flat_map(|service| service.worker_sources.iter().map(String::as_str))
        .collect();
    let mut findings: Vec<Finding> = expected
        .iter()
        .filter(|name| !status.sources.iter().any(|it| it.name == **name))
        .map(|name| {
            Finding::problem(
                "source",
                format!("source {name} has given no list of workers yet"),
                remedy(name),
            )
        })
        .collect();
    for source in &status.sources {
        let name = &source.name;
        match &source.problem {
            Some(problem) => findings.push(Finding::problem(
                "source",
                format!("source {name}: {problem}; its last workers stay"),
                remedy(name),
            )),
            None => findings.push(Finding::ok(
                "source",
                format!("source {name} gives {} workers", source.workers.len()),
            )),
        }
        findings.extend(source.absent.iter().map(|absent| {
            Finding::warning(
                "source",
                format!(
                    "source {name}: {} is not a worker: {}",
                    absent.what, absent.reason
                ),
                "memlb sources    (shows when it is one)",
            )
        }));
    }
    findings
}

fn remedy(source: &str) -> &'static str {
    match source {
        "swarm" => "systemctl status memlb-swarm; journalctl -u memlb-swarm",
        _ => "start the program that gives the workers    (memlb sources apply FILE --watch)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Overrides,
        doctor::{Severity, heartbeats::tests::status},
        membership::AbsentWorker,
        status::WorkerSource,
    };

    #[test]
    fn reports_what_a_source_lacks() {
        let text = r#"
            manager.interfaces = ["eth1"]
            [[service]]
            name = "web"
            address = "192.168.56.101:80"
            fallback = "reject"
            worker_sources = ["swarm"]
            "#;
        let config = Config::parse(text, "memlb.toml", &Overrides::default(), None).unwrap();
        let mut status = status(Some(44), "up");
        let found = findings(&config, &status);
        found[0].assert(Severity::Problem, "swarm has given no list", "");

        status.sources.push(WorkerSource {
            name: "swarm".to_owned(),
            workers: vec!["web/node1".to_owned()],
            last_report_ms: Some(10),
            problem: None,
            absent: vec![AbsentWorker {
                what: "service web".to_owned(),
                service: None,
                reason: "it publishes no port".to_owned(),
            }],
        });
        let severities = |status: &Status| -> Vec<Severity> {
            let found = findings(&config, status);
            found.iter().map(|it| it.severity).collect()
        };
        assert_eq!(severities(&status), [Severity::Ok, Severity::Warning]);
        status.sources[0].problem = Some("the API is silent".to_owned());
        assert_eq!(severities(&status), [Severity::Problem, Severity::Warning]);
    }
}
