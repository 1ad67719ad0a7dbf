//! Tools and packages of the distribution, and their installation on Debian.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use memlb_tests::command::{output, run};

use crate::{
    privilege::as_root,
    workspace::{find_program, print_message},
};

/// A program, its Debian package and its purpose.
#[derive(Debug)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
    pub purpose: &'static str,
}

/// Services to disable, of packages that are installed for their programs. nginx's would occupy port 80 of this
/// machine.
const SERVICES: &[(&str, &[&str])] = &[
    ("nginx-light", &["nginx.service"]),
    ("prometheus", &["prometheus.service"]),
    ("bird2", &["bird.service"]),
    ("frr", &["frr.service"]),
    (
        "docker.io",
        &["docker.service", "docker.socket", "containerd.service"],
    ),
    ("keepalived", &["keepalived.service"]),
    ("openssh-server", &["ssh.service"]),
];

/// Lists tools, each with its program, package and purpose.
#[macro_export]
macro_rules! tools {
    ($($program:literal $package:literal $purpose:literal;)+) => {
        &[$($crate::packages::Tool { program: $program, package: $package, purpose: $purpose }),+]
    };
}

/// Installs the missing ones of `tools`.
pub fn provide_tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| find_program(tool.program).is_none())
        .collect();
    for tool in &missing {
        print_message(format!("{} is missing: it {}", tool.program, tool.purpose));
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    install(&packages)
}

/// Installs the missing ones of Debian's `packages`.
pub fn provide_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    install(&missing)
}

/// Updates the package lists, if a server can be reached.
pub fn refresh_lists() -> Result<()> {
    if !is_debian() {
        bail!("this distribution has no apt-get, which downloads Debian's packages");
    }
    if run(apt_get().args(["update", "--quiet"]).stdout(Stdio::null())).is_err() {
        print_message("the package lists could not be updated; using the present ones");
    }
    Ok(())
}

pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !is_debian() {
        bail!(
            "this distribution has no apt-get. Install the equivalents of the Debian packages {names}; then repeat the command"
        );
    }
    print_message(format!("installing Debian packages: {names}"));
    let _no_services = NoServices::during_installation()?;
    refresh_lists()?;
    run(apt_get()
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(packages)
        .stdout(Stdio::null()))
    .with_context(|| format!("install the Debian packages {names}"))?;
    for (package, services) in SERVICES {
        if packages.contains(package) {
            services.iter().try_for_each(|it| disable_service(it))?;
        }
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = as_root("env");
    command
        .args("DEBIAN_FRONTEND=noninteractive apt-get --option=DPkg::Lock::Timeout=300".split(' '));
    command
}

/// Disables a service whose package is installed for its program.
fn disable_service(service: &str) -> Result<()> {
    if find_program("systemctl").is_none() {
        return Ok(());
    }
    run(as_root("systemctl").args(["--quiet", "disable", service]))
        .with_context(|| format!("disable Debian's {service}"))
}

/// Prevents packages from starting their services until it is dropped (policy-rc.d).
struct NoServices;

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    /// Returns `None` if the administrator has a policy.
    fn during_installation() -> Result<Option<Self>> {
        if Path::new(Self::POLICY).exists() {
            return Ok(None);
        }
        let draft = std::env::temp_dir().join(format!("memlb-policy-rc.d.{}", std::process::id()));
        // The protocol of invoke-rc.d: 101 forbids the action.
        fs::write(&draft, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
        let installed = run(as_root("install")
            .args(["--mode=755", "--no-target-directory"])
            .args([draft.as_path(), Path::new(Self::POLICY)]));
        fs::remove_file(&draft)?;
        installed?;
        Ok(Some(Self))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = run(as_root("rm").args(["--force", Self::POLICY])) {
            print_message(format!("{error:#}: remove {} by hand", Self::POLICY));
        }
    }
}
