//! The control socket: an operator's requests to a running manager.
//!
//! A connection carries one request, a JSON object on one line, and one reply of the same form. The reply to
//! [`Request::Events`] with `follow` is one line for each event, without end; that to [`Request::Trace`] is one line
//! for each packet. [`ErrorReply`] is the reply to a request that is refused or fails.

mod client;
mod handlers;
mod handover;
mod request_error;
mod server;
mod trace;

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::unix::WriteHalf, time::timeout};

pub use client::{ClientError, ControlClient, DISCONNECTED, parse_reply};
pub use handover::HandoverReply;
pub use server::ControlServer;

use crate::{
    deny::{Denied, Prefix},
    event_filter::EventFilter,
    flows::{Client, FlowFilter},
    membership::{AbsentWorker, WorkerChanges, WorkerList},
    trace::TraceFilter,
};
use lb_core::AdminAction;

/// The longest time that the server waits for a request, and for the client to read a line of the reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The reply to a request that is refused or fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorReply {
    pub error: String,
    /// Whether the request was wrong; otherwise it failed at run time.
    #[serde(default)]
    pub is_usage: bool,
}

/// A request of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answered by [`crate::status::Status`].
    Status,
    /// Answered by [`ConfigurationReply`].
    Configuration,
    /// Answered by [`AdminReply`].
    Order {
        worker: String,
        /// `None` means all of the worker's services.
        service: Option<String>,
        order: AdminAction,
        reason: Option<String>,
    },
    /// Answered by [`DenyReply`].
    Deny {
        prefixes: Vec<Prefix>,
        reason: Option<String>,
    },
    /// Allows denied clients again; answered by [`DenyReply`].
    Allow { prefixes: Vec<Prefix> },
    /// Answered by [`crate::deny::DenyList`].
    ListDenied,
    /// Answered by [`crate::flows::Flows`].
    Flows {
        #[serde(default)]
        filter: FlowFilter,
        limit: usize,
    },
    /// Answered by [`crate::explain::Explanation`].
    Explain {
        client: Client,
        service: Option<String>,
    },
    /// Replaces a source's list of workers; answered by [`WorkersReply`].
    SetWorkers {
        source: String,
        list: WorkerList,
        /// Whether invalid workers are left out; otherwise one of them makes the manager refuse the list.
        #[serde(default)]
        partial: bool,
    },
    /// Removes a source with all of its workers; answered by [`WorkersReply`].
    RemoveSource { source: String },
    /// Why a source has no list of workers. Its last list stays in force. Answered by `null`.
    SourceProblem { source: String, problem: String },
    /// Answered by [`HandoverReply`].
    HandOver {
        /// How long the peers may take to acknowledge the last record.
        wait_ms: u64,
        /// Whether to hand over although peers lack connections.
        #[serde(default)]
        force: bool,
        /// Whether to undo a handover instead.
        #[serde(default)]
        undo: bool,
    },
    /// Answered by [`crate::manager::Reloaded`].
    Reload,
    /// Answered by one [`crate::event_stream::EventRecord`] a line.
    Events {
        /// The number of past events, from those that the manager keeps in memory.
        limit: Option<usize>,
        /// Whether future events follow.
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        filter: EventFilter,
    },
    /// Answered by one [`crate::trace::TraceLine`] a line.
    Trace(TraceFilter),
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationReply {
    /// The values that are not the defaults, including options of the manager's command line.
    pub toml: String,
}

/// An operator's order in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminReply {
    /// The order as a sentence.
    pub order: String,
    /// Services without a worker for new connections.
    pub without_worker: Vec<String>,
    /// Effects that the operator may not have intended, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why the change is lost at a restart of the manager; `None` if it is saved.
    pub not_saved: Option<String>,
}

/// A change of the denied clients in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyReply {
    /// What was added, or removed.
    pub changed: Vec<Denied>,
    /// The number of open connections that the change ended.
    pub connections_ended: u64,
    /// Effects that the operator may not have intended, one sentence each.
    pub warnings: Vec<String>,
    /// Why the change is lost at a restart of the manager; `None` if it is saved.
    pub not_saved: Option<String>,
}

/// A list of workers in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersReply {
    #[serde(flatten)]
    pub changes: WorkerChanges,
    /// The entries that are not workers, and why.
    pub absent: Vec<AbsentWorker>,
    /// Why the change is lost at a restart of the manager; `None` if it is saved.
    pub not_saved: Option<String>,
}

/// Sends one line of a reply.
async fn send(writer: &mut WriteHalf<'_>, line: &[u8]) -> Result<()> {
    timeout(TIMEOUT, writer.write_all(line))
        .await
        .context("wait for the client")?
        .context("send the reply")
}
