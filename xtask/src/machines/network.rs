//! The machines' two networks, in an isolated network namespace.

use std::process::Command;

use anyhow::Result;
use memlb_tests::{Namespace, command::output};

pub const NAMESPACE: &str = "memlb-machines";

/// The bridges, each with this machine's address: one for SSH, as with Vagrant, and the lab's, where this machine is
/// the client.
const BRIDGES: [(&str, &str); 2] = [("ssh", "10.56.0.1/24"), ("lab", "192.168.56.1/24")];

/// Makes both networks, with a tap device for each card of each machine.
pub fn create(machines: &[&str]) -> Result<Namespace> {
    let namespace = Namespace::create(NAMESPACE)?;
    let ip = |arguments: &str| -> Result<()> {
        let mut ip: Command = namespace.ip();
        output(ip.args(arguments.split(' '))).map(drop)
    };
    for (bridge, address) in BRIDGES {
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("address add {address} dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for machine in machines {
            let tap = tap(machine, bridge);
            ip(&format!("tuntap add {tap} mode tap"))?;
            ip(&format!("link set {tap} master {bridge} up"))?;
        }
    }
    Ok(namespace)
}

/// Returns whether `machine` has its tap devices in `namespace`.
pub fn has(namespace: &Namespace, machine: &str) -> bool {
    let [tap, _] = taps(machine);
    output(namespace.ip().args(["link", "show", &tap])).is_ok()
}

/// Returns the taps of a machine's cards eth0 and eth1.
pub fn taps(machine: &str) -> [String; 2] {
    BRIDGES.map(|(bridge, _)| tap(machine, bridge))
}

fn tap(machine: &str, bridge: &str) -> String {
    format!("{machine}-{bridge}")
}
