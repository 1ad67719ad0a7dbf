//! The rules of `[manager]`.

use std::net::IpAddr;
use std::path::PathBuf;

use lb_common::maps::MAX_NAT_SOURCES;

use super::reader::{Place, Reader, Setting};
use crate::config::error::ProblemKind;
use crate::config::file::{Given, ManagerTable};
use crate::config::overrides::Overrides;
use crate::config::values;
use crate::config::{Attach, Manager};

/// `IFNAMSIZ` of the kernel, less its final NUL.
/// Alternative names are longer than own ones may be (`ALTIFNAMSIZ`, linux/if.h).
const LONGEST_INTERFACE_NAME: usize = 127;
/// `sun_path` of `struct sockaddr_un`, less its final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

pub(super) fn check(
    reader: &mut Reader<'_>,
    table: ManagerTable,
    overrides: &Overrides,
) -> Manager {
    let default = Manager::default();
    let attach = Setting::flag_or_file("--attach", &overrides.attach, table.attach);
    let listen = Setting::flag_or_file(
        "--heartbeat-listen",
        &overrides.heartbeat_listen,
        table.heartbeat_listen,
    );
    let http = Setting::flag_or_file("--http-listen", &overrides.http_listen, table.http_listen);
    Manager {
        interfaces: interfaces(reader, table.interfaces, overrides),
        attach: reader
            .choice(
                "manager.attach",
                attach,
                &[
                    ("auto", Attach::Auto),
                    ("tc", Attach::Tc),
                    ("xdp", Attach::Xdp),
                ],
                &[],
            )
            .unwrap_or(default.attach),
        heartbeat_listen: reader
            .parse(
                "manager.heartbeat_listen",
                listen,
                values::address,
                default.heartbeat_listen,
            )
            .value,
        pin_path: pin_path(reader, table.pin_path, overrides, default.pin_path),
        control_socket: control_socket(
            reader,
            table.control_socket,
            overrides,
            default.control_socket,
        ),
        state_file: state_file(reader, table.state_file, overrides, default.state_file),
        event_log: event_log(reader, table.event_log, overrides, default.event_log),
        legacy_heartbeats: overrides.legacy_heartbeats
            || table
                .legacy_heartbeats
                .map_or(default.legacy_heartbeats, |given| given.into_inner()),
        http_listen: reader
            .parse(
                "manager.http_listen",
                http,
                |text| match text {
                    "" => Ok(None),
                    text => values::address(text).map(Some),
                },
                default.http_listen,
            )
            .value,
        http_names: http_names(reader, table.http_names),
        nat_sources: nat_sources(reader, table.nat_sources),
    }
}

/// Reads names of this machine, as they stand between `//` and the port of a URL.
fn http_names(reader: &mut Reader<'_>, given: Given<Vec<String>>) -> Vec<String> {
    let setting = Setting::spanned(given, |names| names);
    let (names, place) = reader.take("manager.http_names", setting);
    let names = names.unwrap_or_default();
    let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-' | '_');
    for name in &names {
        if name.is_empty() || !name.chars().all(allowed) {
            reader.refuse(
                &place,
                ProblemKind::BadName,
                format!("{name:?} cannot be a host's name"),
                "names as in \"lb.example.com\", without scheme, port and path",
                "write the name only; addresses are answered to without being named",
            );
        }
    }
    names
}

/// Reads the addresses from which the manager connects to workers.
fn nat_sources(reader: &mut Reader<'_>, given: Given<Vec<String>>) -> Vec<IpAddr> {
    let setting = Setting::spanned(given, |texts| texts);
    let (texts, place) = reader.take("manager.nat_sources", setting);
    let mut sources = Vec::new();
    for text in texts.unwrap_or_default() {
        let address = text.parse().ok().filter(|ip| is_host(*ip));
        match address {
            Some(ip) if sources.contains(&ip) => reader.refuse(
                &place,
                ProblemKind::BadNatSource,
                format!("{ip} is named twice"),
                "each address once",
                "remove one of them",
            ),
            Some(ip) => sources.push(ip),
            None => reader.refuse(
                &place,
                ProblemKind::BadNatSource,
                format!("{text:?} is no address of one host"),
                "IP addresses of this manager without ports, as in [\"192.168.56.101\"]",
                "write the addresses that `ip address` shows at the interface towards the workers",
            ),
        }
    }
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let count = sources.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
        if count > MAX_NAT_SOURCES as usize {
            reader.refuse(
                &place,
                ProblemKind::BadNatSource,
                format!("{count} {family} addresses are named"),
                format!("at most {MAX_NAT_SOURCES} of each family"),
                "leave some of them out, or use mode = \"routed\", which needs no ports",
            );
        }
    }
    sources
}

/// Whether the address can be one of this machine's on a network.
fn is_host(ip: IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(is_special || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

fn interfaces(
    reader: &mut Reader<'_>,
    given: Given<Vec<String>>,
    overrides: &Overrides,
) -> Vec<String> {
    let option = (!overrides.interfaces.is_empty()).then(|| overrides.interfaces.clone());
    let setting = Setting::flag_or_file(
        "--interface",
        &option,
        Setting::spanned(given, |names| names),
    );
    let (names, place) = reader.take("manager.interfaces", setting);
    let names = names.unwrap_or_default();
    if names.is_empty() {
        reader.refuse(
            &place,
            ProblemKind::NoInterface,
            "no interface is named",
            "the interfaces through which clients and workers are reached, as in [\"eth1\"]",
            "add interfaces = [\"eth1\"] to [manager], or start with --interface eth1; \
             `ip -br link` lists what there is",
        );
    }
    for (index, name) in names.iter().enumerate() {
        interface(reader, &place, name, names[..index].contains(name));
    }
    names
}

fn interface(reader: &mut Reader<'_>, place: &Place, name: &str, repeated: bool) {
    let fits = (1..=LONGEST_INTERFACE_NAME).contains(&name.len());
    let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if !fits || !name.chars().all(allowed) {
        reader.refuse(
            place,
            ProblemKind::BadInterface,
            format!("{name:?} cannot be an interface's name"),
            format!("1 to {LONGEST_INTERFACE_NAME} visible characters without / and :"),
            "`ip -br link` lists what there is",
        );
    } else if repeated {
        reader.refuse(
            place,
            ProblemKind::DuplicateInterface,
            format!("{name:?} is named twice"),
            "each interface once",
            "remove one of them",
        );
    }
}

fn pin_path(
    reader: &mut Reader<'_>,
    given: Given<String>,
    overrides: &Overrides,
    default: PathBuf,
) -> PathBuf {
    let (path, place) = path(
        reader,
        ("manager.pin_path", "--pin-path"),
        given,
        &overrides.pin_path,
        default,
    );
    reader.absolute(
        &path,
        &place,
        "a directory of a BPF file system, as /sys/fs/bpf/memlb",
    );
    path
}

fn control_socket(
    reader: &mut Reader<'_>,
    given: Given<String>,
    overrides: &Overrides,
    default: PathBuf,
) -> PathBuf {
    let (path, place) = path(
        reader,
        ("manager.control_socket", "--control-socket"),
        given,
        &overrides.control_socket,
        default,
    );
    let bytes = path.as_os_str().len();
    if !(1..=LONGEST_SOCKET_PATH).contains(&bytes) {
        reader.refuse(
            &place,
            ProblemKind::BadPath,
            format!("a path of {bytes} bytes cannot name a socket"),
            format!("1 to {LONGEST_SOCKET_PATH} bytes"),
            "choose a shorter path, as /run/memlb/manager.sock",
        );
    } else {
        reader.absolute(&path, &place, "a socket, as /run/memlb/manager.sock");
    }
    path
}

fn state_file(
    reader: &mut Reader<'_>,
    given: Given<String>,
    overrides: &Overrides,
    default: PathBuf,
) -> PathBuf {
    let (path, place) = path(
        reader,
        ("manager.state_file", "--state-file"),
        given,
        &overrides.state_file,
        default,
    );
    if path.file_name().is_none() {
        reader.refuse(
            &place,
            ProblemKind::BadPath,
            format!("{:?} names no file", path.display().to_string()),
            "a file for the operator's orders, as /var/lib/memlb/operator.json",
            "name one, or leave the setting out; what is drained would not outlast the manager",
        );
    } else {
        reader.absolute(&path, &place, "a file, as /var/lib/memlb/operator.json");
    }
    path
}

fn event_log(
    reader: &mut Reader<'_>,
    given: Given<String>,
    overrides: &Overrides,
    default: Option<PathBuf>,
) -> Option<PathBuf> {
    let (path, place) = path(
        reader,
        ("manager.event_log", "--event-log"),
        given,
        &overrides.event_log,
        default.unwrap_or_default(),
    );
    if path.as_os_str().is_empty() {
        return None;
    }
    reader.absolute(
        &path,
        &place,
        "a file, as /var/log/memlb/events.jsonl, or \"\" for none",
    );
    Some(path)
}

fn path(
    reader: &mut Reader<'_>,
    (key, flag): (&str, &'static str),
    given: Given<String>,
    option: &Option<PathBuf>,
    default: PathBuf,
) -> (PathBuf, Place) {
    let setting = Setting::flag_or_file(flag, option, Setting::spanned(given, PathBuf::from));
    let (path, place) = reader.take(key, setting);
    (path.unwrap_or(default), place)
}
