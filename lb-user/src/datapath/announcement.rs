//! How managers of one network namespace know of each other.
//!
//! The kernel gives the names of other programs only with `CAP_SYS_ADMIN`, which the package's manager lacks. So each
//! manager holds a socket without a file whose name has the index of an interface (unix(7), abstract sockets): only
//! processes of the same network namespace see it. Any of them can imitate it, and thereby cause a false warning.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process,
};

const PREFIX: &str = "memlb-manager/";

/// Where the kernel lists the sockets of this network namespace.
const SOCKETS: &str = "/proc/net/unix";

/// The presence of this manager at an interface; it ends with the value.
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
    /// The kernel's error, such as an announcement that exists.
    pub fn new(interface: u32) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(name(interface))?;
        Ok(Self {
            interface,
            _socket: UnixDatagram::bind_addr(&address)?,
        })
    }
}

fn name(interface: u32) -> String {
    format!("{PREFIX}{}/{interface}", process::id())
}

/// Whether another manager announces itself at the interface. One of an older version does not.
///
/// # Errors
///
/// The list of sockets cannot be read.
pub fn is_other_at(interface: u32) -> io::Result<bool> {
    let sockets = fs::read(SOCKETS)?;
    let sockets = String::from_utf8_lossy(&sockets);
    Ok(has_other(&sockets, &name(interface), interface))
}

/// Looks in the kernel's list, where such names begin with `@`.
fn has_other(sockets: &str, own: &str, interface: u32) -> bool {
    let names = sockets.lines().filter_map(|line| line.split_once('@'));
    names.map(|(_, name)| name.trim_end()).any(|name| {
        let parts = name.strip_prefix(PREFIX);
        let at = parts.and_then(|it| it.split_once('/')?.1.parse().ok());
        at == Some(interface) && name != own
    })
}

#[cfg(test)]
mod tests {
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
}
