//! Applies the lists of workers that sources give: each as a whole, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use anyhow::anyhow;
use lb_core::{Event, milliseconds};
use thiserror::Error;

use super::{Manager, Save};
use crate::{
    config::{Changes, Config, check_source, worker_address},
    datapath::Routes,
    history::now_ms,
    membership::{AbsentWorker, ComposedConfig, ExternalWorkers, WorkerChanges, WorkerList},
    status::WorkerSource,
};

/// The most entries of [`WorkerList::absent`] that are stored, so that a source cannot fill the manager's memory.
const MAX_ABSENT: usize = 1_000;

/// The lists and problems of all sources.
#[derive(Debug)]
pub(super) struct WorkerSources {
    lists: ExternalWorkers,
    /// The entries that are not workers, by source, as last applied.
    absent: BTreeMap<String, Vec<AbsentWorker>>,
    /// When each source last gave a valid list.
    last_reports: BTreeMap<String, Instant>,
    /// Why a source cannot give its list.
    problems: BTreeMap<String, String>,
    /// Why the last list of a source was refused. A source may give it again and again; one event is enough.
    refused: BTreeMap<String, String>,
}

/// A source's new list.
#[derive(Debug)]
pub struct SourceUpdate {
    pub source: String,
    /// `None` removes the source with all of its workers.
    pub list: Option<WorkerList>,
    /// Whether invalid workers are left out. Otherwise one of them refuses the list.
    pub partial: bool,
}

/// A list in force.
#[derive(Debug)]
pub struct SourceReceipt {
    pub changes: WorkerChanges,
    pub absent: Vec<AbsentWorker>,
    /// `None` if nothing has changed.
    pub saved: Option<Save>,
}

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("nothing was changed: {0}")]
    Name(String),
    #[error("nothing was changed: {}", lines(.0))]
    Workers(Vec<AbsentWorker>),
    /// Changes that need a restart of the manager.
    #[error("nothing was changed: {}", lines(.0))]
    Refused(Vec<String>),
    #[error("nothing was changed: {0:#}")]
    RunTime(anyhow::Error),
}

fn lines(problems: &[impl ToString]) -> String {
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    texts.join("\n")
}

impl SourceUpdate {
    /// Returns the addresses whose routes must be looked up.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let workers = self.list.iter().flat_map(|list| &list.workers);
        workers
            .filter_map(|it| worker_address(&it.address).ok())
            .map(|address| address.ip())
            .collect()
    }
}

impl WorkerSources {
    pub fn new(lists: ExternalWorkers, absent: BTreeMap<String, Vec<AbsentWorker>>) -> Self {
        Self {
            lists,
            absent,
            last_reports: BTreeMap::new(),
            problems: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    pub fn statuses(&self, effective: &Config, now: Instant) -> Vec<WorkerSource> {
        let status = |name: &str| WorkerSource {
            name: name.to_owned(),
            workers: (effective.origins.iter())
                .filter(|(_, origin)| origin.source == name)
                .map(|((service, worker), _)| format!("{service}/{worker}"))
                .collect(),
            last_report_ms: (self.last_reports.get(name))
                .map(|at| milliseconds(now.saturating_duration_since(*at))),
            problem: self.problems.get(name).cloned(),
            absent: self.absent.get(name).cloned().unwrap_or_default(),
        };
        let names: BTreeSet<&str> = self
            .lists
            .sources()
            .chain(self.problems.keys().map(String::as_str))
            .collect();
        names.into_iter().map(status).collect()
    }
}

impl Manager {
    /// Returns a configuration file's content with the workers of all sources, without those that joined.
    pub(super) fn with_sources(&self, file: &Config) -> ComposedConfig {
        self.sources.lists.apply_to(file, &self.membership)
    }

    /// Returns a configuration file's content with the workers of all sources and those that joined.
    pub(super) fn compose(&self, file: &Config) -> ComposedConfig {
        let ComposedConfig { config, absent } = self.with_sources(file);
        ComposedConfig {
            config: self.membership.apply_to(&config),
            absent,
        }
    }

    /// Replaces a source's list; returns the changes.
    pub(super) fn set_workers(
        &mut self,
        update: SourceUpdate,
        routes: &Routes,
    ) -> Result<SourceReceipt, SourceError> {
        let source = update.source.clone();
        let outcome = self.apply_workers(update, routes);
        match &outcome {
            Ok(_) => {
                self.sources
                    .last_reports
                    .insert(source.clone(), Instant::now());
                self.sources.refused.remove(&source);
                if self.sources.problems.remove(&source).is_some() {
                    self.emitter.emit(&Event::SourceRecovered { source });
                }
            }
            Err(error) => {
                let error = error.to_string();
                let before = self.sources.refused.insert(source.clone(), error.clone());
                if before.as_ref() != Some(&error) {
                    self.emitter
                        .emit(&Event::WorkerListRefused { source, error });
                }
            }
        }
        outcome
    }

    fn apply_workers(
        &mut self,
        update: SourceUpdate,
        routes: &Routes,
    ) -> Result<SourceReceipt, SourceError> {
        let SourceUpdate {
            source,
            list,
            partial,
        } = update;
        check_source(&source).map_err(SourceError::Name)?;
        let mut lists = self.sources.lists.clone();
        let given = list
            .as_ref()
            .map_or(0, |it| it.absent.len().min(MAX_ABSENT));
        match list {
            Some(mut list) => {
                list.absent.truncate(MAX_ABSENT);
                lists.set(&source, list, now_ms());
            }
            None if lists.remove(&source) => {}
            None => {
                let known: Vec<&str> = lists.sources().collect();
                let problem = lb_core::unknown_name("source", &source, &known);
                return Err(SourceError::Name(problem));
            }
        }
        let file = &self.configuration.file;
        let ComposedConfig { config, absent } = lists.apply_to(file, &self.membership);
        let own = absent.get(&source).cloned().unwrap_or_default();
        if !partial && own.len() > given {
            return Err(SourceError::Workers(own[given..].to_vec()));
        }
        let config = self.membership.apply_to(&config);
        let changes = WorkerChanges::between(&source, &self.configuration.effective, &config);
        if config != self.configuration.effective {
            self.apply_checked(config, routes)?;
        }
        let is_new = lists != self.sources.lists;
        self.sources.lists = lists;
        let saved = is_new.then(|| self.state_files.workers.save(self.sources.lists.clone()));
        if !changes.is_empty() {
            self.emitter.emit(&Event::WorkersChanged {
                source,
                added: changes.added.clone(),
                changed: changes.changed.clone(),
                removed: changes.removed.clone(),
            });
        }
        self.record_absent(absent);
        Ok(SourceReceipt {
            changes,
            absent: own,
            saved,
        })
    }

    /// Applies a configuration with other workers, unless that needs a restart.
    fn apply_checked(&mut self, config: Config, routes: &Routes) -> Result<(), SourceError> {
        let mut refused = Changes::between(&self.configuration.effective, &config).refused;
        refused.extend(self.datapath.restart_reasons(&config));
        if !refused.is_empty() {
            return Err(SourceError::Refused(refused));
        }
        let numbers = self.datapath.pinned_ids().map_err(SourceError::RunTime)?;
        let lacking = numbers.reused_by(&config.settings(&numbers));
        if lacking > 0 {
            return Err(SourceError::RunTime(anyhow!(self.lacks_backends(lacking))));
        }
        self.apply_config(config, &numbers, routes);
        Ok(())
    }

    /// Records the entries that are not workers, and emits an event for each new one.
    pub(super) fn record_absent(&mut self, absent: BTreeMap<String, Vec<AbsentWorker>>) {
        for (source, entries) in &absent {
            let before = self.sources.absent.get(source);
            let is_new = |it: &&AbsentWorker| before.is_none_or(|before| !before.contains(it));
            for AbsentWorker { what, reason, .. } in entries.iter().filter(is_new) {
                self.emitter.emit(&Event::WorkerNotAdmitted {
                    source: source.clone(),
                    what: what.clone(),
                    reason: reason.clone(),
                });
            }
        }
        self.sources.absent = absent;
    }

    /// Records why a source cannot give its list.
    pub(super) fn source_failed(
        &mut self,
        source: &str,
        problem: String,
    ) -> Result<(), SourceError> {
        check_source(source).map_err(SourceError::Name)?;
        let problems = &mut self.sources.problems;
        let before = problems.insert(source.to_owned(), problem.clone());
        if before.as_ref() != Some(&problem) {
            self.emitter.emit(&Event::SourceFailed {
                source: source.to_owned(),
                problem,
            });
        }
        Ok(())
    }
}
