//! What `vagrant up` does on the machines: files are copied, then scripts/vagrant's own scripts run, in the same order.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    demo::wait_for_worker,
    image::Image,
    node::{NODES, Node, UPLOADS},
};
use crate::{
    interrupt::Interrupt,
    workspace::{root, say},
};

/// Loads the image that the registry has elsewhere.
const LOAD_IMAGE: &str = "sudo docker import --change \
    'CMD [\"/usr/sbin/apache2\", \"-DFOREGROUND\", \"-f\", \"/etc/httpd.conf\"]' \
    /usr/local/share/httpd.tar httpd:2.4";

/// Provisions all machines, and waits until a client gets a worker's page.
pub fn provision(image: &Image, package: &Path, interrupt: &Interrupt) -> Result<()> {
    let scripts = directory().join("provision");
    let manager = NODES[0].address;
    let script = |node: &Node, name: &str, arguments: &[&str]| {
        node.run_script(image, &scripts.join(name), arguments)
            .map(drop)
    };
    let step = |what, nodes, work: &(dyn Fn(&Node) -> Result<()> + Sync)| {
        interrupt.check()?;
        on_all(what, nodes, work)
    };
    let (managers, workers) = NODES.split_at(1);
    step("files copied", &NODES, &|node| upload(node, image, package))?;
    step("docker.sh", &NODES, &|node| script(node, "docker.sh", &[]))?;
    step("image httpd:2.4 imported", &NODES, &|node| {
        node.run(image, LOAD_IMAGE).map(drop)
    })?;
    step("swarm-manager.sh", managers, &|node| {
        script(node, "swarm-manager.sh", &[manager, UPLOADS])
    })?;
    step("swarm-worker.sh", workers, &|node| {
        script(node, "swarm-worker.sh", &[manager, UPLOADS])
    })?;
    step("memlb.sh", &NODES, &|node| {
        let package = format!("{UPLOADS}/memlb.deb");
        script(node, "memlb.sh", &[node.role, &package, manager])
    })?;
    let took = wait_for_worker(interrupt)?;
    said("a client gets a worker's page", took);
    Ok(())
}

/// Returns the directory of the Vagrant lab.
pub fn directory() -> PathBuf {
    root().join("scripts/vagrant")
}

fn upload(node: &Node, image: &Image, package: &Path) -> Result<()> {
    node.upload(image, package, "memlb.deb")?;
    if node.role == "manager" {
        for unit in ["swarm-token.socket", "swarm-token@.service"] {
            node.upload(image, &directory().join("systemd").join(unit), unit)?;
        }
    }
    Ok(())
}

/// Does one step on several machines at once, and says how long it took.
pub fn on_all(
    what: &str,
    nodes: &'static [Node],
    work: &(dyn Fn(&Node) -> Result<()> + Sync),
) -> Result<()> {
    let started = Instant::now();
    thread::scope(|scope| {
        let start = |node: &'static Node| scope.spawn(move || work(node).context(node.name));
        let threads: Vec<_> = nodes.iter().map(start).collect();
        let mut outcomes = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))));
        outcomes.try_for_each(|outcome| outcome)
    })
    .context(what.to_owned())?;
    said(what, started.elapsed());
    Ok(())
}

fn said(what: &str, took: Duration) {
    say(format!("{what:<42}{:>7.1} s", took.as_secs_f64()));
}
