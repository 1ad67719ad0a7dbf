//! The live view of both managers: which one has the address, the state of the peers, and the answers to a client.

use std::{
    io::{self, IsTerminal},
    thread,
};

use anyhow::Result;
use memlb_tests::{
    Probe,
    pair::{Manager, Pair, WEB_PORT},
};
use serde_json::Value;

use super::super::{
    log_tail::LogTail,
    screen::Screen,
    view::{PATIENCE, Recent, TICK, decision},
};
use crate::interrupt::Interrupt;

/// Shows `pair` until an interrupt: redrawn on a terminal, else one line for each change.
///
/// # Errors
/// The client or a log fails.
pub fn show(pair: &Pair, interrupt: &Interrupt) -> Result<()> {
    let client = &pair.network.client;
    let probe = Probe::start(client, Pair::service(WEB_PORT), TICK / 2, PATIENCE)?;
    let mut logs = Vec::new();
    for manager in &pair.managers {
        let log = pair.paths.directory.join(format!("{}.log", manager.name));
        logs.push((manager.name.as_str(), LogTail::open(&log)?));
    }
    let screen = io::stdout().is_terminal().then(Screen::open).transpose()?;
    let mut recent = Recent::default();
    let mut last = Vec::new();
    while !interrupt.is_requested() {
        for (name, log) in &mut logs {
            while let Some(line) = log.next_line()? {
                recent.add_decision(decision(&line).map(|it| format!("{name} {it}")));
            }
        }
        probe
            .take()
            .into_iter()
            .for_each(|it| recent.add_request(it));
        let managers = managers(pair);
        match &screen {
            Some(screen) => {
                let mut lines = head(pair);
                lines.extend(managers);
                recent.append_to(&mut lines, Pair::service(WEB_PORT), screen);
                screen.draw(&lines)?;
            }
            None => {
                recent
                    .decisions
                    .drain(..)
                    .for_each(|line| println!("{line}"));
                let roles: Vec<_> = pair.active();
                if last != roles {
                    managers.iter().for_each(|line| println!("{line}"));
                    last = roles;
                }
            }
        }
        thread::sleep(TICK);
    }
    Ok(())
}

fn head(pair: &Pair) -> Vec<String> {
    let namespaces = pair.network.managers.iter().map(|it| it.name());
    let mut lines = vec!["memlb lab: two managers; Ctrl-C removes it".into()];
    lines.extend(namespaces.zip(&pair.managers).map(|(namespace, manager)| {
        let socket = manager.paths.control_socket();
        format!(
            "as root: nsenter --net=/run/netns/{namespace} -- {} handover --control-socket {}",
            pair.binary.display(),
            socket.display()
        )
    }));
    lines.push(String::new());
    lines
}

/// Returns a line for each manager.
fn managers(pair: &Pair) -> Vec<String> {
    let active = pair.active();
    let managers = pair.managers.iter().enumerate();
    managers
        .map(|(index, manager)| line(manager, active.contains(&index)))
        .collect()
}

fn line(manager: &Manager, is_active: bool) -> String {
    let role = if is_active {
        "has the address"
    } else {
        "is the backup"
    };
    let name = &manager.name;
    match manager.status() {
        Ok(status) => format!("{name}  {role:<16} {}", peers(&status)),
        Err(_) => format!("{name}  {role:<16} the process does not answer"),
    }
}

/// Describes the peers of a manager.
fn peers(status: &Value) -> String {
    let peers = status["peers"].as_array().into_iter().flatten();
    let texts = peers.map(|peer| {
        let figure = |name: &str| peer[name].as_u64().unwrap_or_default();
        let knows = match peer["complete"].as_bool() {
            Some(true) => "has every connection",
            _ => "does not have every connection",
        };
        format!(
            "{} {}: {knows}; lag {:.1} ms, sent {}, received {}",
            peer["name"].as_str().unwrap_or("?"),
            peer["state"].as_str().unwrap_or("?"),
            figure("lag_us") as f64 / 1e3,
            figure("records_sent"),
            figure("records_received"),
        )
    });
    texts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::peers;

    #[test]
    fn shows_what_peers_know() {
        let status = json!({ "peers": [{
            "name": "manager2", "state": "connected", "complete": true, "lag_us": 1500,
            "records_sent": 7, "records_received": 3,
        }] });
        assert_eq!(
            peers(&status),
            "manager2 connected: has every connection; lag 1.5 ms, sent 7, received 3"
        );
        assert_eq!(peers(&json!({})), "");
    }
}
