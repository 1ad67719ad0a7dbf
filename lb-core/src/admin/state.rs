//! The state that an operator sets for a worker.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

lb_common::named_enum! {
    /// The state that an operator sets for a worker. It gets no new connection. Each state includes the earlier ones.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum AdminState {
        /// It keeps its open connections.
        Drain = "drain",
        /// Its silence and bad health raise no alarm.
        Maintenance = "maintenance",
        /// Its open connections are reset.
        Terminate = "terminate",
    }
}

impl AdminState {
    /// Returns the state in words that follow "worker1 is".
    pub fn description(self) -> &'static str {
        match self {
            Self::Drain => "drained",
            Self::Maintenance => "in maintenance",
            Self::Terminate => "drained, and its connections are reset",
        }
    }
}
