//! The control socket: an operator's questions and orders to a running manager.
//!
//! A connection carries one request, a JSON object on one line, and one reply of the same form; the
//! reply to [`Request::Events`] with `follow` is one line an event, without end, that to
//! [`Request::Trace`] one line a packet. Whatever is refused is answered by [`Refused`].

mod answers;
mod client;
mod server;
mod tracing;

use std::{fmt, path::PathBuf};

use lb_core::AdminAction;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

pub use client::{AskError, Asker, understand};
pub use server::Server;
pub use tracing::Tracer;

use crate::{
    deny::{Denied, Prefix},
    feed::Feed,
    flows::{Client, Filter},
    history::History,
    manager::{Instruction, Reloader, Written},
    status::Decided,
    trace::Wanted,
};

/// Why nothing came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    pub error: String,
    /// Whether the request itself was wrong, rather than something on the way.
    #[serde(default)]
    pub is_usage: bool,
}

/// What can be asked and ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answered by [`crate::status::Status`].
    Status,
    /// Answered by [`Ordered`].
    Order {
        worker: String,
        /// Nothing means all of the worker's services.
        #[serde(default)]
        service: Option<String>,
        order: AdminAction,
        #[serde(default)]
        reason: Option<String>,
    },
    /// Answered by [`DenyAnswer`].
    Deny {
        prefixes: Vec<Prefix>,
        #[serde(default)]
        reason: Option<String>,
    },
    /// Takes that back; answered by [`DenyAnswer`].
    Allow { prefixes: Vec<Prefix> },
    /// Answered by `DenyList`.
    ListDenied,
    /// Answered by [`crate::flows::Flows`].
    Flows {
        #[serde(default)]
        filter: Filter,
        limit: usize,
    },
    /// Answered by [`crate::explain::Explanation`].
    Explain {
        client: Client,
        #[serde(default)]
        service: Option<String>,
    },
    /// Answered by [`Reloaded`].
    Reload,
    /// Answered by [`crate::feed::Entry`] a line.
    Events {
        /// The last so many of those that the manager keeps in memory.
        #[serde(default)]
        limit: Option<usize>,
        /// Then those to come as well.
        #[serde(default)]
        follow: bool,
    },
    /// Answered by [`crate::trace::Line`] a line.
    Trace(Wanted),
}

/// An order in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// In one sentence.
    pub order: String,
    /// Services that have no worker for new connections now.
    pub without_worker: Vec<String>,
    /// What the operator may not have meant, one sentence each.
    #[serde(default)]
    pub mind: Vec<String>,
    /// Why a restarted manager would not know of it, should that be so.
    pub not_kept: Option<String>,
}

/// A change of the denied clients in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyAnswer {
    /// What was added, or removed.
    pub changed: Vec<Denied>,
    /// Open connections that have ended with it.
    pub connections_ended: u64,
    /// What the operator may not have meant, one sentence each.
    pub warnings: Vec<String>,
    /// Why a restarted manager would not know of it, should that be so.
    pub not_kept: Option<String>,
}

/// A configuration taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One sentence each; none if nothing was different.
    pub changes: Vec<String>,
    /// What the operator may not have meant, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mind: Vec<String>,
}

/// The main task answers with its view; everything slower happens in the asker's own task.
pub type Question = oneshot::Sender<Decided>;

/// Where an asker's task turns to with its request.
#[derive(Clone)]
pub struct Offices {
    pub questions: mpsc::Sender<Question>,
    pub instructions: mpsc::Sender<Instruction>,
    /// How far the operator's orders are kept on disk.
    pub written: watch::Receiver<Written>,
    /// The same of the denied clients.
    pub denied_written: watch::Receiver<Written>,
    pub reloader: Reloader,
    /// Where the asker's task reads the counters.
    pub pin_path: PathBuf,
    pub feed: Feed,
    pub history: History,
    pub tracer: Tracer,
}

impl fmt::Debug for Offices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offices").finish_non_exhaustive()
    }
}
