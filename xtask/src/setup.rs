//! Installs what a task needs and this machine lacks; fast when nothing is missing.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use memlb_tests::command::{output, run};

use crate::{
    ebpf_compiler::{self, Compiler},
    packages::{Tool, provide_packages, provide_tools},
    privilege::refuse_to_run_under_sudo,
    workspace::{cargo, cargo_bin, find_program, say},
};

const CARGO_DEB_VERSION: &str = "3.8.0";

const BUILD_TOOLS: &[Tool] = &[Tool {
    program: "curl",
    package: "curl",
    purpose: "finds out whether rustup's server can be reached, and is a client of the lab",
}];

const LAB_TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: "makes the network namespaces of the lab",
    },
    Tool {
        program: "nginx",
        package: "nginx-light",
        purpose: "serves a page on every node of the lab",
    },
    Tool {
        program: "ethtool",
        package: "ethtool",
        purpose: "switches offloads off where XDP runs on virtual interfaces",
    },
    Tool {
        program: "systemctl",
        package: "systemd",
        purpose: "relays the manager's web page to this machine",
    },
    Tool {
        program: "bpftool",
        package: "bpftool",
        purpose: "shows memlb's maps to people",
    },
];

const PACKAGE_TOOLS: &[Tool] = &[
    Tool {
        program: "git",
        package: "git",
        purpose: "dates the package",
    },
    Tool {
        program: "dpkg-shlibdeps",
        package: "dpkg-dev",
        purpose: "finds the libraries that the package depends on",
    },
];

const TEST_TOOLS: &[Tool] = &[
    Tool {
        program: "shellcheck",
        package: "shellcheck",
        purpose: "checks the shell scripts",
    },
    Tool {
        program: "vagrant",
        package: "vagrant",
        purpose: "checks scripts/vagrant/Vagrantfile",
    },
    Tool {
        program: "promtool",
        package: "prometheus",
        purpose: "checks memlb's metrics and alert rules, and scrapes them",
    },
    Tool {
        program: "chromium",
        package: "chromium",
        purpose: "looks at the manager's web page",
    },
    Tool {
        program: "systemd-analyze",
        package: "systemd",
        purpose: "checks the services",
    },
    Tool {
        program: "lintian",
        package: "lintian",
        purpose: "checks the package",
    },
    Tool {
        program: "debootstrap",
        package: "debootstrap",
        purpose: "makes a clean Debian to install the package in",
    },
    Tool {
        program: "systemd-nspawn",
        package: "systemd-container",
        purpose: "boots that Debian",
    },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "closes ports, which memlb doctor must find",
    },
    Tool {
        program: "wrk",
        package: "wrk",
        purpose: "is a client of memlb that asks as fast as it can",
    },
    Tool {
        program: "h2load",
        package: "nghttp2-client",
        purpose: "is a client of memlb that speaks HTTP/2",
    },
    Tool {
        program: "openssl",
        package: "openssl",
        purpose: "makes certificates for the web servers behind memlb",
    },
    Tool {
        program: "iperf3",
        package: "iperf3",
        purpose: "sends as much as it can through memlb",
    },
    Tool {
        program: "ping",
        package: "iputils-ping",
        purpose: "asks whether a service's address answers",
    },
    Tool {
        program: "ssh",
        package: "openssh-client",
        purpose: "holds a session through memlb",
    },
    Tool {
        program: "sshd",
        package: "openssh-server",
        purpose: "is the other end of that session; its service is not started",
    },
    Tool {
        program: "dig",
        package: "bind9-dnsutils",
        purpose: "asks name servers behind memlb",
    },
    Tool {
        program: "faketime",
        package: "faketime",
        purpose: "makes clocks jump",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
        purpose: "is such a name server",
    },
    Tool {
        program: "gtlsclient",
        package: "ngtcp2-client",
        purpose: "downloads through memlb over QUIC",
    },
    Tool {
        program: "gtlsserver",
        package: "ngtcp2-server",
        purpose: "is what it downloads from",
    },
];

const KERNEL_TOOLS: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "emulates a machine for other kernels",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        purpose: "is the shell there",
    },
    Tool {
        program: "cpio",
        package: "cpio",
        purpose: "packs the files for there",
    },
    Tool {
        program: "modprobe",
        package: "kmod",
        purpose: "knows which modules those kernels need",
    },
    Tool {
        program: "strip",
        package: "binutils",
        purpose: "makes the programs for there small",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
        purpose: "unpacks the modules",
    },
];

/// Provides what building takes.
pub fn for_building() -> Result<Compiler> {
    refuse_to_run_under_sudo()?;
    provide_tools(BUILD_TOOLS)?;
    let compiler = Compiler::provide()?;
    ebpf_compiler::provide_linker()?;
    Ok(compiler)
}

/// Provides what the lab takes beside the build.
pub fn for_the_lab() -> Result<()> {
    provide_tools(LAB_TOOLS)
}

/// Provides what other kernels take beside the build.
pub fn for_kernels() -> Result<()> {
    for_the_lab()?;
    provide_tools(KERNEL_TOOLS)
}

/// Provides what making the package takes beside the build.
pub fn for_packaging() -> Result<()> {
    provide_tools(PACKAGE_TOOLS)?;
    provide_cargo_deb()
}

/// Provides what any task takes.
pub fn for_tests() -> Result<Compiler> {
    let compiler = for_building()?;
    for_kernels()?;
    for_packaging()?;
    provide_tools(TEST_TOOLS)?;
    // Has no program of its own by which it could be noticed.
    provide_packages(&["python3-venv"])?;
    Ok(compiler)
}

/// Installs cargo-deb where it is missing.
fn provide_cargo_deb() -> Result<()> {
    let is_here = |program: PathBuf| {
        output(Command::new(program).arg("--version"))
            .is_ok_and(|version| version.trim().ends_with(CARGO_DEB_VERSION))
    };
    if find_program("cargo-deb").is_some_and(is_here) {
        return Ok(());
    }
    say(format!(
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
