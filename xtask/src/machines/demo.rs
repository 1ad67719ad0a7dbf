//! What is shown on the machines: the lab's smoke test, then memlb before the ports of Swarm's routing mesh.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use memlb_tests::{
    command::{output, run},
    wait_until,
};

use super::{
    image::Image,
    network::NAMESPACE,
    node::{NODES, Node},
    provision::directory,
};
use crate::{
    interrupt::Interrupt,
    privilege::this_program,
    workspace::{root, say},
};

/// How long the Swarm and memlb may take to change what is served.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The services of swarm-manager.sh, with their ports and pages.
const SERVICES: [(&str, u16, &str); 3] = [
    ("web-manager", 8080, "Manager"),
    ("web-worker1", 8081, "Worker1"),
    ("web-worker2", 8082, "Worker2"),
];

/// Plays everything.
pub fn play(image: &Image, interrupt: &Interrupt) -> Result<()> {
    smoke()?;
    let [manager, ..] = &NODES;
    println!(
        "{}",
        manager.run(image, "sudo docker node ls; sudo docker service ls")?
    );
    mesh(image, manager, interrupt)
}

/// Runs the lab's own smoke test.
fn smoke() -> Result<()> {
    say("scripts/vagrant/smoke.sh");
    let started = Instant::now();
    run(Command::new(directory().join("smoke.sh"))
        .env("MEMLB_NODES", root().join("xtask/src/machines/nodes.sh"))
        .env("MEMLB_XTASK", this_program()?))?;
    say(format!(
        "smoke.sh passed in {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// Publishes the services by the routing mesh, as the system of 2018 had them: each port is open on every node then. memlb
/// stands before them with the same configuration.
fn mesh(image: &Image, manager: &Node, interrupt: &Interrupt) -> Result<()> {
    say("the services are published by Swarm's routing mesh");
    let started = Instant::now();
    for (service, port, _) in SERVICES {
        manager.run(
            image,
            &format!(
                "sudo docker service update --quiet --detach --publish-rm published={port},target=80,mode=host \
                 --publish-add published={port},target=80,mode=ingress {service}"
            ),
        )?;
    }
    for node in &NODES {
        for (service, port, page) in SERVICES {
            let url = format!("http://{}:{port}/", node.address);
            wait_for_page(
                &format!("{service} to answer at {url}"),
                &url,
                page,
                interrupt,
            )?;
            println!("{url:<32} {page}");
        }
    }
    say(format!(
        "every node answers at every port after {} s",
        started.elapsed().as_secs()
    ));
    let took = wait_for_worker(interrupt)?;
    let pages = (0..20)
        .map(|_| get(&service()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        pages.iter().all(|page| page.starts_with("Worker")),
        "not every connection through memlb reached a worker: {pages:?}"
    );
    println!(
        "{} connections through memlb: {} each, the first after {} ms",
        pages.len(),
        pages[0],
        took.as_millis()
    );
    println!("{}", manager.run(image, "sudo memlb status")?);
    Ok(())
}

/// Waits until a client of memlb gets a worker's page.
pub fn wait_for_worker(interrupt: &Interrupt) -> Result<Duration> {
    let what = "a worker to serve through memlb";
    wait_for_page(what, &service(), "Worker", interrupt)
}

/// Waits until the page at `url` begins with `page`.
fn wait_for_page(what: &str, url: &str, page: &str, interrupt: &Interrupt) -> Result<Duration> {
    let took = wait_until(PATIENCE, what, || {
        let got = get(url).is_ok_and(|got| got.starts_with(page)) || interrupt.is_requested();
        if !got {
            // Each question takes the machines' time.
            thread::sleep(Duration::from_millis(500));
        }
        got
    })?;
    interrupt.check()?;
    Ok(took)
}

/// Returns the URL of memlb's service.
fn service() -> String {
    format!("http://{}/", NODES[0].address)
}

fn get(url: &str) -> Result<String> {
    let page = output(
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{NAMESPACE}"))
            .args(["curl", "--silent", "--fail", "--max-time", "2", url]),
    )?;
    Ok(page.trim().to_owned())
}
