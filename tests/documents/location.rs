//! The machine on which the reader of a block is.

use memlb_tests::document::Block;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In this repository, on a machine that runs no manager.
    Repository,
    /// On the lab's manager.
    Manager,
    /// There, while it does not run.
    ManagerAtRest,
    /// On a worker of the lab whose agent does not run.
    Worker,
    /// On machines that systemd boots, where `cargo xtask test` tries the package.
    Machines,
    /// On the machines of a pair.
    Pair,
    /// On a machine with Vagrant and VirtualBox.
    VirtualBox,
}

/// # Panics
/// When the comment before the block is none of those that are known.
pub fn location_of(block: &Block) -> Location {
    let place = &block.place;
    match block.remark.as_deref() {
        Some("in the repository") => Location::Repository,
        Some("on the manager, while it does not run") => Location::ManagerAtRest,
        Some("on worker1, while its agent does not run") => Location::Worker,
        Some(other) => panic!("{place}: there is no location {other:?}"),
        None if place.starts_with("docs/installing.md:") => Location::Machines,
        None if place.starts_with("docs/high-availability.md:") => Location::Pair,
        None if place.starts_with("scripts/vagrant/") => Location::VirtualBox,
        None => Location::Manager,
    }
}
