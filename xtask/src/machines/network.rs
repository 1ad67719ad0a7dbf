//! The machines' two networks, in a network namespace from which no packet leaves.

use std::process::Command;

use anyhow::Result;
use memlb_tests::{Namespace, command::output};

use super::node::{NODES, Node};

pub const NAMESPACE: &str = "memlb-machines";

/// The bridges, each with this machine's address: one for SSH, as Vagrant has one, and the lab's, on which this machine
/// is the client.
const BRIDGES: [(&str, &str); 2] = [("ssh", "10.56.0.1/24"), ("lab", "192.168.56.1/24")];

/// Makes both networks, with a tap for each card of each machine.
pub fn create() -> Result<Namespace> {
    let namespace = Namespace::create(NAMESPACE)?;
    let ip = |arguments: &str| -> Result<()> {
        let mut ip: Command = namespace.ip();
        output(ip.args(arguments.split(' '))).map(drop)
    };
    for (bridge, address) in BRIDGES {
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("address add {address} dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for node in &NODES {
            let tap = tap(node, bridge);
            ip(&format!("tuntap add {tap} mode tap"))?;
            ip(&format!("link set {tap} master {bridge} up"))?;
        }
    }
    Ok(namespace)
}

/// Returns the taps of a machine's cards eth0 and eth1.
pub fn taps(node: &Node) -> [String; 2] {
    BRIDGES.map(|(bridge, _)| tap(node, bridge))
}

fn tap(node: &Node, bridge: &str) -> String {
    format!("{}-{bridge}", node.name)
}
