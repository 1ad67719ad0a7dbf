//! The router's BIRD, and its routes as the kernel has them.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::network::{CLIENT, SERVICE4, TO_CLIENT};
use crate::{command::output, namespace::Namespace, process::Process};

const FIRST_PORT: u16 = 20_000;

/// Returns a file of `scripts/ha`.
pub(super) fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts/ha")
        .join(name)
}

/// Starts the router's BIRD by the shipped file.
pub(super) fn start(router: &Namespace, directory: &Path) -> Result<Process> {
    bird(
        router,
        &shipped("bird-router.conf"),
        &directory.join("router"),
    )
}

/// Starts BIRD in `namespace`; what it writes has names that begin with `files`.
pub(super) fn bird(namespace: &Namespace, configuration: &Path, files: &Path) -> Result<Process> {
    let mut command = namespace.command("bird");
    command.arg("-f").arg("-c").arg(configuration);
    command.arg("-s").arg(files.with_extension("ctl"));
    command.arg("-P").arg(files.with_extension("pid"));
    let name = format!("bird in {}", namespace.name());
    Process::start(&name, &mut command, &files.with_extension("bird.log"))
}

/// Returns the next hops of the route to `address`; none without a route.
pub(super) fn next_hops(router: &Namespace, address: IpAddr) -> Result<Vec<IpAddr>> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let show = [family, "-json", "route", "show", &address.to_string()];
    let text = output(router.ip().args(show))?;
    let routes: Vec<Value> = match text.trim() {
        "" => Vec::new(),
        text => serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?,
    };
    let mut hops = Vec::new();
    for route in &routes {
        let several = route["nexthops"].as_array().into_iter().flatten();
        for hop in several.chain([route]) {
            if let Some(gateway) = hop["gateway"].as_str() {
                hops.push(gateway.parse()?);
            }
        }
    }
    hops.sort_unstable();
    Ok(hops)
}

/// Asks the kernel for the next hop of so many connections from one client, by their ports.
pub(super) fn spread(router: &Namespace, connections: u16) -> Result<Vec<IpAddr>> {
    let mut questions = String::new();
    for port in FIRST_PORT..FIRST_PORT + connections {
        writeln!(
            questions,
            "route get {SERVICE4} from {CLIENT} iif {TO_CLIENT} ipproto tcp sport {port} dport 80"
        )?;
    }
    let file = std::env::temp_dir().join(format!("{}.batch", router.name()));
    fs::write(&file, questions).with_context(|| format!("write {}", file.display()))?;
    let answers = output(router.ip().arg("-batch").arg(&file));
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    let answers = answers?;
    let words: Vec<&str> = answers.split_whitespace().collect();
    let hops = words.windows(2).filter(|pair| pair[0] == "via");
    hops.map(|pair| {
        pair[1]
            .parse()
            .with_context(|| format!("no address: {}", pair[1]))
    })
    .collect()
}
