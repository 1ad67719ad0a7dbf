//! What memlb's scenario tests and its lab are made of: network namespaces,
//! topologies, real servers, processes, and clients that measure.
//!
//! A [`Cluster`] is the whole system at work, from the namespaces up; what it
//! is made of can be had singly. Everything is taken down when dropped, the
//! last made first, so that a test that fails or panics leaves nothing behind.

pub mod cli;
pub mod client;
pub mod cluster;
pub mod command;
pub mod configuration;
pub mod datagram;
pub mod document;
pub mod herd;
pub mod kernel;
pub mod load;
pub mod memory_file;
pub mod namespace;
pub mod narrow;
pub mod nginx;
pub mod notice;
pub mod observe;
pub mod peers;
pub mod place;
pub mod privilege;
pub mod probe;
pub mod process;
pub mod syn;
pub mod topology;
pub mod transfer;
pub mod wait;
pub mod wire;
pub mod world;

pub use memlb_test_macros::root_test;

pub use self::{
    client::{Connection, Response},
    cluster::{Cluster, ClusterOptions},
    memory_file::MemoryFile,
    namespace::Namespace,
    nginx::Nginx,
    place::Place,
    privilege::require_root,
    probe::{Probe, Report},
    process::Process,
    topology::{Node, Shape, Topology},
    wait::{wait_for, wait_until},
    wire::Wire,
};
