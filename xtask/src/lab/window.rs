//! A relay from this machine to the manager's web page, which listens inside a namespace.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Stdio,
};

use anyhow::{Context, Result};
use memlb_tests::Cluster;

/// systemd's relay for sockets that it inherits.
const RELAY: &str = "/lib/systemd/systemd-socket-proxyd";

/// Relays a port of this machine to the page of `cluster`. Returns the page's URL; `None` if the manager serves no
/// page.
///
/// The socket is in this machine's network namespace. The relay runs in the manager's, so it ends with the lab.
pub fn open(cluster: &Cluster) -> Result<Option<String>> {
    let Some(served) = cluster
        .manager
        .as_ref()
        .and_then(|manager| served_at(&manager.log()))
    else {
        return Ok(None);
    };
    // The same port, or the next free one.
    let port = served.port();
    let listener = (port..=port.saturating_add(99))
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .context("find a free port for the web page")?;
    let address = listener
        .local_addr()
        .context("read the port of the relay")?;
    // The protocol of sd_listen_fds(3): the number of sockets, from descriptor 3 on, and the process that gets them.
    cluster
        .topology
        .manager
        .command("sh")
        .args([
            "-c",
            "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$1\" 3<&0 </dev/null",
        ])
        .arg(RELAY)
        .arg(served.to_string())
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {RELAY}"))?;
    Ok(Some(format!("http://{address}/")))
}

/// Finds the address of the manager's page in its log.
fn served_at(log: &str) -> Option<SocketAddrV4> {
    let (_, address) = log.split_once("at http://")?;
    address.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::served_at;

    #[test]
    fn finds_the_page_in_the_managers_log() {
        let log = "INFO web page, metrics and API at http://127.0.0.1:9998/\nINFO ready: web\n";
        assert_eq!(served_at(log), "127.0.0.1:9998".parse().ok());
        assert_eq!(served_at("INFO ready: web at 192.168.56.101:80"), None);
    }
}
