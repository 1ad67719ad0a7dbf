//! A server that moves from one host to another while it serves: what CRIU and the pre-copy of a virtual machine
//! do, without either.

mod application;
mod checkpoint;
mod hosts;

pub use self::{
    application::{
        Application, DOWNLOAD, Frozen, NEWS, PATTERN_BYTES, PATTERN_SEED, UPLOAD, verify,
    },
    hosts::{Departed, Moved, add_host, arrive, depart},
};
