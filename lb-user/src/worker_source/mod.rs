//! What sources of workers have in common: they give a manager their whole list, again when it has changed, and say
//! why they have none.

mod file;

use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

pub use file::{read, watch};

use crate::{
    control::{ClientError, ControlClient, Request, WorkersReply},
    membership::WorkerList,
};

/// How often an unchanged list is given again: the manager knows then that its source lives.
const REPEAT: Duration = Duration::from_secs(5);

/// How often a list that the manager did not take is given again.
const RETRY: Duration = Duration::from_secs(1);

/// A source of workers, with what it last gave a manager.
#[derive(Debug)]
pub struct SourceClient {
    client: ControlClient,
    name: String,
    /// Whether workers that are not valid are left out; otherwise each of them refuses the list.
    partial: bool,
    /// In force at the manager.
    given: Option<WorkerList>,
    /// The list that the manager refused, which would be refused again.
    refused: Option<WorkerList>,
    tried: Option<Instant>,
    /// As last logged.
    trouble: Option<String>,
}

impl SourceClient {
    pub fn new(client: ControlClient, name: String, partial: bool) -> Self {
        Self {
            client,
            name,
            partial,
            given: None,
            refused: None,
            tried: None,
            trouble: None,
        }
    }

    /// Gives the list to the manager, if it is another one or was not given for some time.
    ///
    /// What fails is logged and tried again at a later call; a list that was refused is not tried again.
    pub async fn publish(&mut self, list: &WorkerList) {
        if self.refused.as_ref() == Some(list) {
            return;
        }
        let is_new = self.given.as_ref() != Some(list);
        let pause = match (is_new, &self.trouble) {
            (_, Some(_)) => RETRY,
            (true, None) => Duration::ZERO,
            (false, None) => REPEAT,
        };
        if self.tried.is_some_and(|tried| tried.elapsed() < pause) {
            return;
        }
        self.tried = Some(Instant::now());
        self.refused = None;
        match self.send(list.clone()).await {
            Ok(reply) => {
                if self.trouble.take().is_some() {
                    info!("the manager has the list of workers again");
                }
                log(&reply);
                self.given = Some(list.clone());
            }
            Err(error) => {
                if matches!(&error, ClientError::Refused(refused) if refused.is_usage) {
                    self.refused = Some(list.clone());
                }
                self.given = None;
                self.log_trouble(error.to_string());
            }
        }
    }

    /// Gives the list once.
    ///
    /// # Errors
    ///
    /// Says that no manager answers, or why it refused the list.
    pub async fn send(&self, list: WorkerList) -> Result<WorkersReply, ClientError> {
        let request = Request::SetWorkers {
            source: self.name.clone(),
            list,
            partial: self.partial,
        };
        self.client.request(&request).await
    }

    /// Tells the manager why there is no list. Its last one stays in force.
    pub async fn fail(&mut self, problem: String) {
        let is_known = self.trouble.as_ref() == Some(&problem);
        let is_recent = self.tried.is_some_and(|it| it.elapsed() < REPEAT);
        if is_known && is_recent {
            return;
        }
        self.tried = Some(Instant::now());
        // The next list is given again, which ends the problem.
        (self.given, self.refused) = (None, None);
        let request = Request::SourceProblem {
            source: self.name.clone(),
            problem: problem.clone(),
        };
        let outcome: Result<(), ClientError> = self.client.request(&request).await;
        self.log_trouble(problem);
        if let Err(error) = outcome {
            warn!("{error}");
        }
    }

    fn log_trouble(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            warn!("{trouble}");
            self.trouble = Some(trouble);
        }
    }
}

fn log(reply: &WorkersReply) {
    let lists = [
        ("added", &reply.changes.added),
        ("changed", &reply.changes.changed),
        ("removed", &reply.changes.removed),
    ];
    for (verb, names) in lists.iter().filter(|(_, names)| !names.is_empty()) {
        info!("{verb} {}", names.join(", "));
    }
    if let Some(problem) = &reply.not_saved {
        warn!("a restarted manager would not have these workers: {problem}");
    }
}
