//! Observations of a running system: its pages, its logs and its kernel objects.

use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    client::{self, Connection},
    cluster::Cluster,
    command::output,
    namespace::Namespace,
    probe::Probe,
    wait::wait_for,
};

/// How long a client waits for its page.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a client waits on a connection that it keeps.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(10);

impl Cluster {
    /// Opens a connection from the client on which it gets `page`.
    ///
    /// # Errors
    /// When it gets something else, or nothing.
    pub fn connection_to(&self, page: &str) -> Result<Connection> {
        let mut connection =
            Connection::open(&self.topology.client, self.service(), CONNECTION_PATIENCE)?;
        let got = connection.get("/")?.first_line();
        ensure!(got == page, "the client got {got:?} instead of {page:?}");
        Ok(connection)
    }

    /// Starts to request pages from the client at an interval.
    ///
    /// # Errors
    /// When the client's namespace cannot be entered.
    pub fn probe(&self, every: Duration) -> Result<Probe> {
        Probe::start(
            &self.topology.client,
            self.service(),
            every,
            CONNECTION_PATIENCE,
        )
    }

    /// Returns the page that the client gets on a new connection.
    ///
    /// # Errors
    /// When it gets nothing.
    pub fn page(&self) -> Result<String> {
        self.page_at(&self.topology.client)
    }

    /// Returns the page that a client in `namespace` gets on a new connection.
    ///
    /// # Errors
    /// When it gets nothing.
    pub fn page_at(&self, namespace: &Namespace) -> Result<String> {
        Ok(client::get(namespace, self.service(), "/", PATIENCE)?.first_line())
    }

    /// Waits until the client gets `page`, and returns how long that took.
    ///
    /// # Errors
    /// When it does not within `deadline`; the error has the last answer.
    pub fn wait_for_page(&self, page: &str, deadline: Duration) -> Result<Duration> {
        let start = Instant::now();
        let mut last = None;
        wait_for(deadline, &format!("the page {page}"), || {
            let got = self.page();
            let right = got.as_deref().is_ok_and(|got| got == page);
            last = Some(got);
            right.then(|| start.elapsed())
        })
        .with_context(|| format!("the client's last page: {last:?}"))
    }

    /// Returns the status of the first service's backend `name`.
    ///
    /// # Errors
    /// When the manager does not answer, or has no such backend.
    pub fn backend(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        backend(&status, name)
            .cloned()
            .with_context(|| format!("no backend {name} in {status:#}"))
    }

    /// Waits until the manager sees worker `name` in that `state`, and returns how long that took.
    ///
    /// # Errors
    /// When it does not within `deadline`.
    pub fn wait_for_state(&self, name: &str, state: &str, deadline: Duration) -> Result<Duration> {
        self.wait_for_status(deadline, &format!("{name} to be {state}"), |status| {
            backend(status, name).is_some_and(|backend| backend["state"] == state)
        })
    }

    /// Waits until the manager has received a heartbeat of worker `name` with that much available memory, and has
    /// decided.
    ///
    /// # Errors
    /// When it has not within `deadline`.
    pub fn wait_for_memory(&self, name: &str, available_kb: u64, deadline: Duration) -> Result<()> {
        let what = format!("{name} to report {available_kb} kB");
        self.wait_for_status(deadline, &what, |status| {
            backend(status, name)
                .is_some_and(|backend| backend["memory_available_bytes"] == available_kb * 1024)
        })?;
        Ok(())
    }

    /// Returns the packets that had that verdict.
    ///
    /// # Errors
    /// When the manager does not answer, or knows no such verdict.
    pub fn verdict(&self, name: &str) -> Result<u64> {
        self.status()?["verdicts"][name]["packets"]
            .as_u64()
            .with_context(|| format!("no verdict {name}"))
    }

    /// Returns the events of that `kind` from the event log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn events_of(&self, kind: &str) -> Result<Vec<Value>> {
        let mut events = self.events()?;
        events.retain(|event| event["event"] == kind);
        Ok(events)
    }

    /// Waits for at least that many events of a kind, and returns them. The manager writes them to its log some time
    /// after its action.
    ///
    /// # Errors
    /// When there are fewer after five seconds.
    pub fn wait_for_events(&self, kind: &str, count: usize) -> Result<Vec<Value>> {
        wait_for(
            Duration::from_secs(5),
            &format!("{count} events {kind}"),
            || {
                let events = self.events_of(kind).ok()?;
                (events.len() >= count).then_some(events)
            },
        )
    }

    /// The same for exactly that many events.
    ///
    /// # Errors
    /// When there are fewer after five seconds, or more.
    pub fn require_events(&self, kind: &str, count: usize) -> Result<Vec<Value>> {
        let events = self.wait_for_events(kind, count)?;
        ensure!(
            events.len() == count,
            "{} events {kind}, not {count}",
            events.len()
        );
        Ok(events)
    }

    /// Returns the path of a pinned map.
    pub fn map(&self, name: &str) -> String {
        self.paths.pin_path.join(name).display().to_string()
    }

    /// Returns the kernel's numbers of the links pinned by this system.
    ///
    /// # Errors
    /// When bpftool fails.
    pub fn pinned_links(&self) -> Result<BTreeSet<u64>> {
        let links = bpftool(&["-f", "link", "show"])?;
        let ours = |link: &&Value| {
            link["pinned"].as_array().is_some_and(|pins| {
                pins.iter()
                    .filter_map(Value::as_str)
                    .any(|pin| Path::new(pin).starts_with(&self.paths.pin_path))
            })
        };
        Ok(numbers(links.as_array().into_iter().flatten().filter(ours)))
    }
}

/// Returns the backend `name` of the first service in a status.
pub fn backend<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let backends = status["services"][0]["backends"].as_array()?;
    backends.iter().find(|backend| backend["name"] == name)
}

/// Returns the numbers of all BPF links in the kernel.
///
/// # Errors
/// When bpftool fails.
pub fn links() -> Result<BTreeSet<u64>> {
    let links = bpftool(&["link", "show"])?;
    Ok(numbers(links.as_array().into_iter().flatten()))
}

/// Returns what bpftool shows, as JSON.
///
/// # Errors
/// When bpftool fails.
pub fn bpftool(arguments: &[&str]) -> Result<Value> {
    let text = output(Command::new("bpftool").arg("-j").args(arguments))?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("bpftool's answer to {arguments:?}: {text}"))?;
    match value.get("error") {
        Some(error) => bail!("bpftool {arguments:?}: {error}"),
        None => Ok(value),
    }
}

fn numbers<'a>(links: impl Iterator<Item = &'a Value>) -> BTreeSet<u64> {
    links.filter_map(|link| link["id"].as_u64()).collect()
}
