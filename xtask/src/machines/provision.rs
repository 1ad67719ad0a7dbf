//! The provisioning of `vagrant up`: copies files, then runs the scripts of scripts/vagrant in the same order.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    client::wait_for_worker,
    image::Image,
    node::{LAB, MANAGER2, Node, UPLOADS},
};
use crate::{
    interrupt::Interrupt,
    workspace::{print_message, root},
};

/// Imports the image that Docker would pull from a registry.
const LOAD_IMAGE: &str = "sudo docker import --change \
    'CMD [\"/usr/sbin/apache2\", \"-DFOREGROUND\", \"-f\", \"/etc/httpd.conf\"]' \
    /usr/local/share/httpd.tar httpd:2.4";

/// Provisions the lab's machines, and waits until a client gets a worker's page.
pub fn provision(image: &Image, package: &Path, interrupt: &Interrupt) -> Result<()> {
    let scripts = directory().join("provision");
    let manager = LAB[0].address;
    let script = |node: &Node, name: &str, arguments: &[&str]| {
        node.run_script(image, &scripts.join(name), arguments)
            .map(drop)
    };
    let step = |what, nodes, work: &(dyn Fn(&Node) -> Result<()> + Sync)| {
        interrupt.check()?;
        on_all(what, nodes, work)
    };
    let (managers, workers) = LAB.split_at(1);
    step("files copied", LAB, &|node| upload(node, image, package))?;
    step("docker.sh", LAB, &|node| script(node, "docker.sh", &[]))?;
    step("image httpd:2.4 imported", LAB, &|node| {
        node.run(image, LOAD_IMAGE).map(drop)
    })?;
    step("swarm-manager.sh", managers, &|node| {
        script(node, "swarm-manager.sh", &[manager, UPLOADS])
    })?;
    step("swarm-worker.sh", workers, &|node| {
        script(node, "swarm-worker.sh", &[manager, UPLOADS])
    })?;
    step("memlb.sh", LAB, &|node| {
        let package = format!("{UPLOADS}/memlb.deb");
        script(node, "memlb.sh", &[node.role, &package, manager])
    })?;
    let took = wait_for_worker(interrupt)?;
    print_duration("a client gets a worker's page", took);
    Ok(())
}

/// Makes the two managers a pair by keepalived, and lets the agents report to both.
pub fn join_managers(
    image: &Image,
    package: &Path,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    let (manager, workers) = (&LAB[0], &LAB[1..]);
    let script = root().join("xtask/src/machines/pair.sh");
    let (key, uploaded) = (scratch.join("peer.key"), format!("{UPLOADS}/peer.key"));
    let content = manager.run(
        image,
        &format!("memlb keygen --peer --output {uploaded} >/dev/null && cat {uploaded}"),
    )?;
    fs::write(&key, content).with_context(|| format!("write {}", key.display()))?;
    MANAGER2.upload(image, &key, "peer.key")?;
    MANAGER2.upload(image, package, "memlb.deb")?;
    interrupt.check()?;
    on_all("pair.sh", &[*manager, *MANAGER2], &|node| {
        let arguments = [&format!("{UPLOADS}/memlb.deb"), &*uploaded];
        node.run_script(image, &script, &arguments).map(drop)
    })?;
    let managers = format!(
        "--manager {} --manager {}",
        manager.address, MANAGER2.address
    );
    let agents = format!(
        "echo 'MEMLB_AGENT=\"{managers}\"' | sudo tee /etc/default/memlb-agent && sudo systemctl restart memlb-agent"
    );
    on_all("agents configured", workers, &|node| {
        node.run(image, &agents).map(drop)
    })
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

/// Executes one step on several machines at the same time, and prints its duration.
pub fn on_all(
    what: &str,
    nodes: &[Node],
    work: &(dyn Fn(&Node) -> Result<()> + Sync),
) -> Result<()> {
    let started = Instant::now();
    thread::scope(|scope| {
        let start = |node| scope.spawn(move || work(node).context(node.name));
        let threads: Vec<_> = nodes.iter().map(start).collect();
        let mut outcomes = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))));
        outcomes.try_for_each(|outcome| outcome)
    })
    .context(what.to_owned())?;
    print_duration(what, started.elapsed());
    Ok(())
}

fn print_duration(what: &str, took: Duration) {
    print_message(format!("{what:<42}{:>7.1} s", took.as_secs_f64()));
}
