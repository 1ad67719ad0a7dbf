//! How managers of one network namespace know of each other.
//!
//! The kernel gives the names of other programs only with `CAP_SYS_ADMIN`, which the package's manager lacks. So each
//! manager holds abstract sockets (unix(7)), whose names contain its process id and an interface or a service. Only
//! processes of the same network namespace see them. Any of these processes can imitate the socket of an interface, and
//! thereby cause a false warning. The socket of a service prevents the start of another manager, and counts only if
//! root or this user holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    process,
};

use lb_core::Endpoint;
use nix::{
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket,
        sockopt::PeerCredentials,
    },
    unistd::Uid,
};
use tracing::debug;

const SERVICE_PREFIX: &str = "memlb-service/";
const INTERFACE_PREFIX: &str = "memlb-manager/";

/// The kernel's list of the Unix sockets of this network namespace.
const SOCKETS: &str = "/proc/net/unix";

/// Announces this manager at an interface until it is dropped.
#[derive(Debug)]
pub struct Announcement {
    pub interface: u32,
    _socket: UnixDatagram,
}

impl Announcement {
    /// Announces this process at the interface with this index.
    ///
    /// # Errors
    ///
    /// The kernel's error, for example because the announcement exists already.
    pub fn new(interface: u32) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(name(interface))?;
        Ok(Self {
            interface,
            _socket: UnixDatagram::bind_addr(&address)?,
        })
    }
}

fn name(interface: u32) -> String {
    format!("{INTERFACE_PREFIX}{}/{interface}", process::id())
}

/// Whether another manager announces itself at the interface. Older versions of memlb do not announce themselves.
///
/// # Errors
///
/// The list of sockets cannot be read.
pub fn is_other_at(interface: u32) -> io::Result<bool> {
    let sockets = fs::read(SOCKETS)?;
    let sockets = String::from_utf8_lossy(&sockets);
    Ok(has_other(&sockets, &name(interface), interface))
}

fn has_other(sockets: &str, own: &str, interface: u32) -> bool {
    names(sockets).any(|name| {
        let parts = name.strip_prefix(INTERFACE_PREFIX);
        let at = parts.and_then(|it| it.split_once('/')?.1.parse().ok());
        at == Some(interface) && name != own
    })
}

/// Announces this manager's services until it is dropped.
#[derive(Debug, Default)]
pub struct ServiceAnnouncements(BTreeMap<Endpoint, UnixListener>);

impl ServiceAnnouncements {
    /// Announces these services, and no others.
    pub fn update(&mut self, services: &BTreeSet<Endpoint>) {
        self.0.retain(|service, _| services.contains(service));
        for service in services {
            if self.0.contains_key(service) {
                continue;
            }
            let name = format!("{SERVICE_PREFIX}{}/{service}", process::id());
            let bound = SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixListener::bind_addr(&address));
            match bound {
                Ok(socket) => drop(self.0.insert(*service, socket)),
                Err(error) => debug!("announce service {service}: {error}"),
            }
        }
    }
}

/// Finds a manager that announces itself at the interface and announces one of `services`, and that root or this user
/// runs. Returns its process id and that service. Older versions of memlb do not announce themselves.
///
/// # Errors
///
/// The list of sockets cannot be read.
pub fn other_serving(
    interface: u32,
    services: &BTreeSet<Endpoint>,
) -> io::Result<Option<(i32, Endpoint)>> {
    let sockets = fs::read(SOCKETS)?;
    let sockets = String::from_utf8_lossy(&sockets);
    Ok(names(&sockets).find_map(|name| {
        let (pid, service) = name.strip_prefix(SERVICE_PREFIX)?.split_once('/')?;
        let service = service.parse().ok()?;
        let is_at = |it: &str| it == format!("{INTERFACE_PREFIX}{pid}/{interface}");
        let is_same = services.contains(&service) && names(&sockets).any(is_at);
        let is_other = pid != process::id().to_string();
        Some((
            trusted_holder(name).filter(|_| is_same && is_other)?,
            service,
        ))
    }))
}

/// The process that holds a socket, if root or this user runs it. Does not block: any process can fill the socket's
/// queue.
fn trusted_holder(name: &str) -> Option<i32> {
    let address = UnixAddr::new_abstract(name.as_bytes()).ok()?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(socket.as_raw_fd(), &address).ok()?;
    let holder = getsockopt(&socket, PeerCredentials).ok()?;
    let user = Uid::from_raw(holder.uid());
    (user.is_root() || user == Uid::effective()).then(|| holder.pid())
}

/// The names of abstract sockets in the kernel's list, without the leading `@`.
fn names(sockets: &str) -> impl Iterator<Item = &str> {
    let names = sockets.lines().filter_map(|line| line.split_once('@'));
    names.map(|(_, name)| name.trim_end())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    #[test]
    fn finds_another_manager_at_the_same_interface_only() {
        let line = |name: &str| format!("ffff: 00000002 00000000 00000000 0002 01 123 @{name}\n");
        let list = "Num RefCount Protocol Flags Type St Inode Path\n".to_owned()
            + &line("memlb-manager/7/2")
            + &line("memlb-manager/9/3")
            + &line("other/8/4");
        let is_other = |interface| has_other(&list, "memlb-manager/7/2", interface);
        assert!(!is_other(2), "its own");
        assert!(is_other(3));
        assert!(!is_other(4));
        assert!(!is_other(1));
    }

    #[test]
    fn the_kernel_lists_an_announcement_while_it_lasts() {
        const INTERFACE: u32 = 987_654_321;
        let listed = || {
            fs::read_to_string(SOCKETS)
                .unwrap()
                .contains(&name(INTERFACE))
        };
        let announcement = Announcement::new(INTERFACE).unwrap();
        assert!(listed());
        assert!(!is_other_at(INTERFACE).unwrap());
        drop(announcement);
        assert!(!listed());
    }

    #[test]
    fn finds_a_service_of_another_process_only() {
        const INTERFACE: u32 = 987_654_322;
        let services: BTreeSet<Endpoint> = ["192.0.2.1:80".parse().unwrap()].into();
        let _interface = Announcement::new(INTERFACE).unwrap();
        let mut own = ServiceAnnouncements::default();
        own.update(&services);
        assert_eq!(own.0.len(), 1);
        assert_eq!(other_serving(INTERFACE, &services).unwrap(), None);

        // No process has this number.
        let bind = |name: &str| {
            let address = SocketAddr::from_abstract_name(name).unwrap();
            UnixListener::bind_addr(&address).unwrap()
        };
        let _service = bind("memlb-service/5000000/192.0.2.1:80/tcp");
        assert_eq!(other_serving(INTERFACE, &services).unwrap(), None);
        let _manager = bind(&format!("memlb-manager/5000000/{INTERFACE}"));
        let found = other_serving(INTERFACE, &services).unwrap();
        let holder = i32::try_from(process::id()).unwrap();
        assert_eq!(found, Some((holder, "192.0.2.1:80".parse().unwrap())));
        let others = ["192.0.2.1:80/udp".parse().unwrap()].into();
        assert_eq!(other_serving(INTERFACE, &others).unwrap(), None);
        own.update(&BTreeSet::new());
        assert_eq!(own.0.len(), 0);
    }

    #[test]
    fn a_socket_whose_queue_is_full_delays_nothing() {
        const NAME: &str = "memlb-service/5000001/192.0.2.2:80/tcp";
        let address = UnixAddr::new_abstract(NAME.as_bytes()).unwrap();
        let kind = (AddressFamily::Unix, SockType::Stream);
        let listener = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let mut held = 0;
        while trusted_holder(NAME).is_some() {
            held += 1;
            assert!(held < 100, "the queue is never full");
        }
        assert!(held > 0);
    }
}
