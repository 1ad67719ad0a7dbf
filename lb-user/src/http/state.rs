//! What the handlers of HTTP requests share.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::timeline::Recorder;
use crate::manager::ManagerHandle;

/// The maximum age of counters in a reply. Reading a full flow table takes a tenth of a second, and the number of
/// clients is not limited.
pub const MAX_AGE: Duration = Duration::from_millis(500);

/// The state that all handlers share.
#[derive(Debug, Clone)]
pub struct HttpState {
    pub manager: ManagerHandle,
    pub recorder: Recorder,
    /// Limits the clients that listen to events.
    pub listeners: Arc<Semaphore>,
}
