//! The live view of the lab: the manager's status, its last decisions, and
//! what a client gets.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use anyhow::Result;
use memlb_tests::{Cluster, Probe, command::output, probe::Request};

use super::{log_tail::LogTail, screen::Screen};
use crate::interrupt::Interrupt;

/// The pace of the view; the client's is twice that.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Less than the second after which TCP repeats a SYN.
pub(super) const PATIENCE: Duration = Duration::from_millis(900);

/// How many answers are shown.
pub(super) const TRACE: usize = 70;

/// Shows `cluster` at work until someone wants it to end: redrawn on a
/// terminal, else one line for each change.
///
/// # Errors
/// When it cannot be watched any more.
pub fn show(cluster: &Cluster, page: Option<&str>, interrupt: &Interrupt) -> Result<()> {
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), TICK / 2, PATIENCE)?;
    let mut log = LogTail::open(&cluster.paths.directory.join("manager.log"))?;
    let mut view: Box<dyn View> = if io::stdout().is_terminal() {
        Box::new(Page::open(page)?)
    } else {
        if let Some(page) = page {
            println!("page:    {page}");
        }
        Box::new(Lines::default())
    };
    while !interrupt.is_requested() {
        while let Some(line) = log.next_line()? {
            if let Some(decision) = decision(&line) {
                view.note_decision(decision);
            }
        }
        probe.take().into_iter().for_each(|ask| view.note_ask(ask));
        view.draw(cluster)?;
        thread::sleep(TICK);
    }
    Ok(())
}

trait View {
    fn note_decision(&mut self, decision: String);
    fn note_ask(&mut self, ask: Request);
    fn draw(&mut self, cluster: &Cluster) -> Result<()>;
}

/// Everything on one page.
struct Page {
    /// Where a browser shows it.
    address: String,
    screen: Screen,
    requests: VecDeque<Request>,
    decisions: VecDeque<String>,
}

impl Page {
    fn open(page: Option<&str>) -> Result<Self> {
        let address = page.map_or(String::new(), |page| format!("see it in a browser: {page}"));
        Ok(Self {
            address,
            screen: Screen::open()?,
            requests: VecDeque::new(),
            decisions: VecDeque::new(),
        })
    }
}

impl View for Page {
    fn note_decision(&mut self, decision: String) {
        keep_last(&mut self.decisions, decision, self.screen.height());
    }

    fn note_ask(&mut self, ask: Request) {
        keep_last(&mut self.requests, ask, TRACE);
    }

    fn draw(&mut self, cluster: &Cluster) -> Result<()> {
        let mut lines = vec![
            "memlb lab: Ctrl-C takes it down".into(),
            self.address.clone(),
            format!(
                "edit {} and worker2's beside it to move the selection",
                cluster.paths.memory_file(1).display()
            ),
            String::new(),
        ];
        match output(&mut cluster.memlb("status")) {
            Ok(status) => lines.extend(status.trim_end().lines().map(str::to_owned)),
            Err(error) => lines.push(format!("the manager does not answer: {error:#}")),
        }
        lines.extend([
            String::new(),
            format!(
                "client: http://{}/ {}",
                cluster.service().ip(),
                self.requests.back().map(answer).unwrap_or_default()
            ),
            format!("  {}", self.requests.iter().map(sign).collect::<String>()),
            "  one sign a request, ten a second: the worker's number, M the manager, . no answer"
                .into(),
            String::new(),
        ]);
        let room = self.screen.height().saturating_sub(lines.len());
        let first = self.decisions.len().saturating_sub(room);
        lines.extend(self.decisions.range(first..).cloned());
        self.screen.draw(&lines)
    }
}

/// A line for everything new.
#[derive(Default)]
struct Lines {
    page: Option<Result<String, String>>,
}

impl View for Lines {
    fn note_decision(&mut self, decision: String) {
        println!("manager: {decision}");
    }

    fn note_ask(&mut self, ask: Request) {
        if self.page.as_ref() != Some(&ask.answer) {
            println!("client:  {}", answer(&ask));
            self.page = Some(ask.answer);
        }
    }

    fn draw(&mut self, _: &Cluster) -> Result<()> {
        Ok(())
    }
}

pub(super) fn keep_last<T>(items: &mut VecDeque<T>, item: T, count: usize) {
    items.push_back(item);
    while items.len() > count {
        items.pop_front();
    }
}

/// Shortens a line of the manager's log for the view: the time of day is
/// enough, and heartbeats show in the status.
pub(super) fn decision(line: &str) -> Option<String> {
    let (time, message) = line.split_once('Z')?;
    let (_, time) = time.split_once('T')?;
    let message = message.trim_start().trim_start_matches("INFO").trim_start();
    let milliseconds = time.get(..12)?;
    (!message.starts_with("received ")).then(|| format!("{milliseconds} {message}"))
}

pub(super) fn answer(ask: &Request) -> String {
    match &ask.answer {
        Ok(page) => {
            let took = ask.ended_at - ask.sent_at;
            format!("gave {page} in {:.1} ms", took.as_secs_f64() * 1e3)
        }
        Err(error) => format!("gave no page: {error}"),
    }
}

pub(super) fn sign(ask: &Request) -> char {
    match ask.page() {
        None => '.',
        Some("Manager") => 'M',
        Some(page) => page.chars().last().unwrap_or('?'),
    }
}

#[cfg(test)]
mod tests {
    use super::decision;

    #[test]
    fn shortens_decisions_and_leaves_heartbeats_out() {
        let line = "2026-11-23T01:08:02.342580Z  INFO web: manager -> worker2: it is up";
        let warning = "2026-11-23T01:08:02.342580Z  WARN worker1 is down";
        let heartbeat = "2026-11-23T01:08:02.342516Z  INFO received worker2: 350.0 MiB available";
        assert_eq!(
            decision(line).as_deref(),
            Some("01:08:02.342 web: manager -> worker2: it is up")
        );
        assert_eq!(
            decision(warning).as_deref(),
            Some("01:08:02.342 WARN worker1 is down")
        );
        assert_eq!(decision(heartbeat), None);
    }
}
