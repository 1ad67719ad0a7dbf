//! What memlb's scenario tests and its lab are made of: network namespaces,
//! topologies, real servers, processes, and clients that measure.

pub mod command;
pub mod wait;
