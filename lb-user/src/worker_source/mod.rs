//! The client of a source of workers: sends the whole list to the manager whenever it has changed, or reports why there
//! is none.

mod file;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use tracing::{info, warn};

pub use file::{read, watch};

use crate::{
    control::{ClientError, ControlClient, Request, WorkersReply},
    membership::WorkerList,
    status::Status,
};

/// How often an unchanged list is sent again, so that the manager knows that the source is alive. Also for a list that
/// the manager refused.
const REPEAT: Duration = Duration::from_secs(5);

/// How often a list is sent again if the manager does not have it.
const RETRY: Duration = Duration::from_secs(1);

/// The longest problem, in characters.
const MAX_PROBLEM: usize = 500;

/// A source of workers, with the list that it last sent to the manager.
#[derive(Debug)]
pub struct SourceClient {
    client: ControlClient,
    name: String,
    /// Whether the manager leaves out invalid workers; otherwise it refuses the list because of them.
    partial: bool,
    /// The list in force at the manager.
    sent: Option<WorkerList>,
    /// The list that the manager refused. The manager accepts it when its own configuration has changed.
    refused: Option<WorkerList>,
    tried: Option<Instant>,
    /// The problem that was last logged.
    problem: Option<String>,
}

impl SourceClient {
    pub fn new(client: ControlClient, name: String, partial: bool) -> Self {
        Self {
            client,
            name,
            partial,
            sent: None,
            refused: None,
            tried: None,
            problem: None,
        }
    }

    /// Sends the list to the manager, if it has changed or was not sent for some time.
    ///
    /// A failure is logged, and a later call sends the list again.
    pub async fn publish(&mut self, list: &WorkerList) {
        let is_new = self.sent.as_ref() != Some(list);
        let pause = match (is_new, &self.problem) {
            _ if self.refused.as_ref() == Some(list) => REPEAT,
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
                if self.problem.take().is_some() {
                    info!("the manager has the list of workers again");
                }
                log(&reply);
                self.sent = Some(list.clone());
            }
            Err(error) => {
                if matches!(&error, ClientError::Refused(refused) if refused.is_usage) {
                    self.refused = Some(list.clone());
                }
                self.sent = None;
                self.log_problem(error.to_string());
            }
        }
    }

    /// Returns the [`crate::membership::ExternalWorker::path`] of each worker that the manager has from this source.
    ///
    /// # Errors
    ///
    /// No manager answers.
    pub async fn workers(&self) -> Result<BTreeSet<String>, ClientError> {
        let status: Status = self.client.request(&Request::Status).await?;
        let mut sources = status.sources.into_iter();
        let own = sources.find(|it| it.name == self.name);
        Ok(own.into_iter().flat_map(|it| it.workers).collect())
    }

    /// Sends the list once.
    ///
    /// # Errors
    ///
    /// No manager answers, or it refused the list.
    pub async fn send(&self, list: WorkerList) -> Result<WorkersReply, ClientError> {
        let request = Request::SetWorkers {
            source: self.name.clone(),
            list,
            partial: self.partial,
        };
        self.client.request(&request).await
    }

    /// Reports to the manager why there is no list. The last list stays in force.
    pub async fn report_problem(&mut self, problem: &str) {
        // The manager accepts one line of limited length.
        let line = problem.split_whitespace().collect::<Vec<_>>().join(" ");
        let problem: String = line.chars().take(MAX_PROBLEM).collect();
        let is_known = self.problem.as_ref() == Some(&problem);
        let is_recent = self.tried.is_some_and(|it| it.elapsed() < REPEAT);
        if is_known && is_recent {
            return;
        }
        self.tried = Some(Instant::now());
        // Send the next list even if it is unchanged, which ends the problem.
        (self.sent, self.refused) = (None, None);
        let request = Request::SourceProblem {
            source: self.name.clone(),
            problem: problem.clone(),
        };
        let outcome: Result<(), ClientError> = self.client.request(&request).await;
        self.log_problem(problem);
        if let Err(error) = outcome {
            warn!("{error}");
        }
    }

    fn log_problem(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            warn!("{problem}");
            self.problem = Some(problem);
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    use super::*;
    use crate::control::ErrorReply;

    /// Answers requests with these lines, one after the other.
    async fn answer(listener: UnixListener, replies: [String; 2]) {
        for reply in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.split();
            let mut request = String::new();
            let mut reader = BufReader::new(reader);
            reader.read_line(&mut request).await.unwrap();
            writer.write_all(reply.as_bytes()).await.unwrap();
            writer.write_all(b"\n").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refused_list_is_sent_again_because_the_manager_may_accept_it_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manager.sock");
        let refusal = ErrorReply {
            error: "nothing was changed: there is no service \"web\"".to_owned(),
            is_usage: true,
        };
        let replies = [
            serde_json::to_string(&refusal).unwrap(),
            serde_json::to_string(&WorkersReply::default()).unwrap(),
        ];
        let manager = answer(UnixListener::bind(&path).unwrap(), replies);
        let manager = tokio::spawn(manager);
        let mut source = SourceClient::new(ControlClient::new(path), "file".to_owned(), false);
        let list = WorkerList::default();
        for _ in 0..2 {
            // The second call is too early.
            source.publish(&list).await;
            assert_eq!(source.refused.as_ref(), Some(&list));
        }
        source.tried = Instant::now().checked_sub(REPEAT);
        source.publish(&list).await;
        assert_eq!(
            (source.sent.as_ref(), &source.refused),
            (Some(&list), &None)
        );
        manager.await.unwrap();
    }
}
