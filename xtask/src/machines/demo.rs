//! The demo on the machines: the lab's smoke test, then memlb in front of the ports of Swarm's routing mesh.

use std::{process::Command, time::Instant};

use anyhow::{Result, ensure};
use memlb_tests::command;

use super::{
    client::{get, service, wait_for_page, wait_for_worker},
    image::Image,
    node::{LAB, Node},
    provision::directory,
};
use crate::{
    interrupt::Interrupt,
    privilege::this_program,
    workspace::{print_message, root},
};

/// The services of swarm-manager.sh, with their ports and pages.
const SERVICES: [(&str, u16, &str); 3] = [
    ("web-manager", 8080, "Manager"),
    ("web-worker1", 8081, "Worker1"),
    ("web-worker2", 8082, "Worker2"),
];

/// Runs the demo.
pub fn run(image: &Image, interrupt: &Interrupt) -> Result<()> {
    smoke()?;
    let manager = &LAB[0];
    println!(
        "{}",
        manager.run(image, "sudo docker node ls; sudo docker service ls")?
    );
    mesh(image, manager, interrupt)
}

/// Runs the lab's smoke test.
fn smoke() -> Result<()> {
    print_message("scripts/vagrant/smoke.sh");
    let started = Instant::now();
    command::run(
        Command::new(directory().join("smoke.sh"))
            .env("MEMLB_NODES", root().join("xtask/src/machines/nodes.sh"))
            .env("MEMLB_XTASK", this_program()?),
    )?;
    print_message(format!(
        "smoke.sh passed in {} s",
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// Publishes the services by the routing mesh, as in the system of 2018: each port is then open on every node. memlb's
/// configuration stays the same.
fn mesh(image: &Image, manager: &Node, interrupt: &Interrupt) -> Result<()> {
    print_message("the services are published by Swarm's routing mesh");
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
    for node in LAB {
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
    print_message(format!(
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
