//! Installs the missing tools of a task. Fast if none is missing.

use std::{path::PathBuf, process::Command, thread};

use anyhow::{Context, Result, anyhow};
use memlb_tests::command::{output, run};

use crate::{
    ebpf_compiler::{self, Compiler},
    packages::{Tool, provide_packages, provide_tools},
    privilege::refuse_to_run_under_sudo,
    tools,
    workspace::{cargo, cargo_bin, find_program, print_message},
};

const CARGO_DEB_VERSION: &str = "3.8.0";

const BUILD_TOOLS: &[Tool] = tools! {
    "curl" "curl" "tests whether rustup's server can be reached, and is a client of the lab";
};

const LAB_TOOLS: &[Tool] = tools! {
    "ip" "iproute2" "makes the network namespaces of the lab";
    "nginx" "nginx-light" "serves a page on every node of the lab";
    "ethtool" "ethtool" "switches offloads off where XDP runs on virtual interfaces";
    "systemctl" "systemd" "relays the manager's web page to this machine";
    "bpftool" "bpftool" "shows memlb's maps";
};

const PAIR_TOOLS: &[Tool] = tools! {
    "keepalived" "keepalived" "moves addresses between the managers of a pair; its service is not started";
    "busybox" "busybox-static" "announces the lab's router by ARP";
    "nft" "nftables" "closes ports, which memlb doctor must find, and drops keepalived's messages";
};

const PACKAGE_TOOLS: &[Tool] = tools! {
    "git" "git" "dates the package";
    "dpkg-shlibdeps" "dpkg-dev" "finds the libraries that the package depends on";
};

const TEST_TOOLS: &[Tool] = tools! {
    "dockerd" "docker.io" "runs the Swarm whose tasks become workers";
    "busybox" "busybox-static" "is the server of the Swarm's tasks";
    "shellcheck" "shellcheck" "checks the shell scripts";
    "vagrant" "vagrant" "checks scripts/vagrant/Vagrantfile";
    "promtool" "prometheus" "checks memlb's metrics and alert rules, and scrapes them";
    "chromium" "chromium" "tests the manager's web page";
    "systemd-analyze" "systemd" "checks the services";
    "lintian" "lintian" "checks the package";
    "debootstrap" "debootstrap" "makes a clean Debian to install the package in";
    "systemd-nspawn" "systemd-container" "boots that Debian";
    "haproxy" "haproxy" "is a balancer that memlb replaces";
    "wrk" "wrk" "is a client that sends requests without pause";
    "h2load" "nghttp2-client" "is a client that uses HTTP/2";
    "openssl" "openssl" "makes certificates for the workers' web servers";
    "iperf3" "iperf3" "measures throughput through memlb";
    "bird" "bird2" "announces the addresses of several managers; its service is not started";
    "vtysh" "frr" "checks FRR's configuration for such managers; its service is not started";
    "ping" "iputils-ping" "tests whether a service's address answers";
    "ssh" "openssh-client" "holds a session through memlb";
    "sshd" "openssh-server" "is the server of this session; its service is not started";
    "dig" "bind9-dnsutils" "queries name servers behind memlb";
    "faketime" "faketime" "makes clocks jump";
    "dnsmasq" "dnsmasq-base" "is a name server behind memlb";
    "gtlsclient" "ngtcp2-client" "downloads through memlb over QUIC";
    "gtlsserver" "ngtcp2-server" "is the QUIC server of these downloads";
};

const KERNEL_TOOLS: &[Tool] = tools! {
    "qemu-system-x86_64" "qemu-system-x86" "emulates a machine for other kernels";
    "busybox" "busybox-static" "is the shell of that machine";
    "cpio" "cpio" "packs the files of that machine";
    "keepalived" "keepalived" "balances by IPVS in that machine; its service is not started here";
    "modprobe" "kmod" "resolves the modules of those kernels";
    "strip" "binutils" "reduces the size of that machine's programs";
    "sysctl" "procps" "changes settings in that machine";
    "xz" "xz-utils" "unpacks the modules";
};

const MACHINE_TOOLS: &[Tool] = tools! {
    "qemu-system-x86_64" "qemu-system-x86" "runs the machines";
    "debootstrap" "debootstrap" "installs the Debian that they boot";
    "mkfs.ext4" "e2fsprogs" "makes their disk image";
    "ssh" "openssh-client" "connects to the machines";
};

/// Provides the tools of the build.
pub fn for_building() -> Result<Compiler> {
    refuse_to_run_under_sudo()?;
    provide_tools(BUILD_TOOLS)?;
    let compiler = Compiler::provide()?;
    ebpf_compiler::provide_linker()?;
    Ok(compiler)
}

/// Provides the tools of the lab, without those of the build.
pub fn for_the_lab() -> Result<()> {
    provide_tools(LAB_TOOLS)
}

/// Provides the tools of the lab with two managers, without those of the build.
pub fn for_the_pair() -> Result<()> {
    for_the_lab()?;
    provide_tools(PAIR_TOOLS)
}

/// Provides the tools of other kernels, without those of the build.
pub fn for_kernels() -> Result<()> {
    for_the_lab()?;
    provide_tools(KERNEL_TOOLS)
}

/// Provides the tools of the machines under QEMU, without those of the build.
pub fn for_machines() -> Result<()> {
    for_the_lab()?;
    provide_tools(BUILD_TOOLS)?;
    provide_tools(MACHINE_TOOLS)
}

/// Provides the tools of the package, without those of the build.
pub fn for_packaging() -> Result<()> {
    provide_tools(PACKAGE_TOOLS)?;
    provide_cargo_deb()
}

/// Provides the tools of all tasks.
pub fn for_tests() -> Result<Compiler> {
    refuse_to_run_under_sudo()?;
    provide_tools(BUILD_TOOLS)?;
    // cargo-deb is built while other packages are downloaded and installed.
    thread::scope(|scope| {
        let cargo_deb = scope.spawn(provide_cargo_deb);
        let compiler = for_building()?;
        for_kernels()?;
        for_the_pair()?;
        provide_tools(PACKAGE_TOOLS)?;
        provide_tools(TEST_TOOLS)?;
        // It has no program to look for.
        provide_packages(&["python3-venv"])?;
        let built = cargo_deb.join();
        built.unwrap_or_else(|_| Err(anyhow!("panicked")))?;
        Ok(compiler)
    })
}

/// Installs cargo-deb if it is missing.
fn provide_cargo_deb() -> Result<()> {
    let is_installed = |program: PathBuf| {
        output(Command::new(program).arg("--version"))
            .is_ok_and(|version| version.trim().ends_with(CARGO_DEB_VERSION))
    };
    if find_program("cargo-deb").is_some_and(is_installed) {
        return Ok(());
    }
    print_message(format!(
        "cargo-deb {CARGO_DEB_VERSION} is missing: it makes the package; building it takes a minute or two"
    ));
    run(cargo().args([
        "install",
        "cargo-deb",
        "--version",
        CARGO_DEB_VERSION,
        "--locked",
    ]))
    .with_context(|| format!("build cargo-deb to {}", cargo_bin().display()))
}
