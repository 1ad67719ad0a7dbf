//! The parts of memlb's scenario tests and of its lab: network namespaces, topologies, real servers, processes, and
//! measuring clients.
//!
//! A [`Cluster`] is a complete running system; its parts can be used separately. Everything is removed when dropped, in
//! reverse order, so that a test that fails or panics leaves nothing behind.

pub mod balancers;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod cluster_options;
pub mod command;
pub mod configuration;
pub mod datagram;
pub mod document;
pub mod herd;
pub mod kernel;
pub mod load;
pub mod lossy_link;
pub mod memory_file;
pub mod migration;
pub mod mounts;
pub mod namespace;
pub mod narrow_path;
pub mod nginx;
pub mod notice;
pub mod observe;
pub mod pair;
pub mod paths;
pub mod privilege;
pub mod probe;
pub mod process;
pub mod random;
pub mod scale_out;
pub mod syn;
pub mod topology;
pub mod transfer;
pub mod wait;

pub use memlb_test_macros::{packet_test, root_test};

pub use self::{
    client::{Connection, Response},
    cluster::Cluster,
    cluster_options::ClusterOptions,
    lossy_link::LossyLink,
    memory_file::MemoryFile,
    namespace::Namespace,
    nginx::Nginx,
    paths::ClusterPaths,
    privilege::require_root,
    probe::{Probe, Report},
    process::Process,
    topology::{Node, Shape, Topology},
    wait::{eventually, wait_for, wait_until},
};
