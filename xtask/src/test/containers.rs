//! Three containers in one network, a manager and two workers with a web server each, and a client.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use memlb_tests::{
    Nginx, Shape, Topology, client::get, cluster_options::SERVICE_PORT, command::run,
    wait::wait_until,
};
use serde_json::Value;

use super::container::{Container, PATIENCE};

pub struct Containers {
    // In the order of their end.
    pub manager: Container,
    pub workers: Vec<Container>,
    _servers: Vec<Nginx>,
    pub network: Topology,
}

impl Containers {
    /// Boots them with the file system of the archive `debian` and the package in root's home, below the empty
    /// `folder`. Needs a mount namespace of its own.
    pub fn boot(package: &Path, debian: &Path, folder: &Path) -> Result<Self> {
        run(Command::new("mount")
            .args(["--types=tmpfs", "tmpfs"])
            .arg(folder))?;
        let root = folder.join("debian");
        fs::create_dir(&root).context("make a folder")?;
        run(Command::new("tar")
            .args(["--extract", "--numeric-owner", "--preserve-permissions"])
            .arg("--file")
            .arg(debian)
            .arg("--directory")
            .arg(&root))?;
        let name = package.file_name().context("the package has a name")?;
        fs::copy(package, root.join("root").join(name)).context("copy the package")?;
        fs::write(
            root.join("etc/apt/apt.conf.d/assume-yes"),
            "APT::Get::Assume-Yes \"true\";\n",
        )
        .context("configure apt")?;

        let network = Topology::create(Shape::OneArm, 2)?;
        let mut servers = vec![Nginx::start(
            &network.manager,
            8080,
            "Manager",
            &folder.join("server"),
        )?];
        let mut workers = Vec::new();
        for (node, (name, port)) in network
            .workers
            .iter()
            .zip([("worker1", 8081), ("worker2", 8082)])
        {
            let files = folder.join(format!("server-of-{name}"));
            servers.push(Nginx::start(node, port, name, &files)?);
            workers.push(Container::boot(name, &root, node, folder)?);
        }
        Ok(Self {
            manager: Container::boot("manager", &root, &network.manager, folder)?,
            workers,
            _servers: servers,
            network,
        })
    }

    pub fn all(&self) -> impl Iterator<Item = &Container> {
        self.workers.iter().chain([&self.manager])
    }

    /// Returns the service's address.
    pub fn service(&self) -> SocketAddr {
        (self.network.manager.address(), SERVICE_PORT).into()
    }

    /// Returns the page that a client gets.
    pub fn page(&self) -> Result<String> {
        let patience = Duration::from_secs(2);
        Ok(get(&self.network.client, self.service(), "/", patience)?.first_line())
    }

    /// Waits until both workers are up and eligible.
    pub fn wait_for_all(&self) -> Result<()> {
        wait_until(PATIENCE, "both workers to be up", || {
            let Ok(status) = self.manager.run("memlb", &["status", "--json"]) else {
                return false;
            };
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            let backends = status["services"][0]["backends"].as_array();
            let serves = |it: &Value| it["state"] == "up" && it["ineligible_reason"].is_null();
            backends.is_some_and(|all| all.len() == 3 && all.iter().all(serves))
        })?;
        Ok(())
    }
}
