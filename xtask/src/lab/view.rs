//! The live view of the lab: the manager's status, its last decisions, and the answers to a client.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    net::SocketAddr,
    thread,
    time::Duration,
};

use anyhow::Result;
use memlb_tests::{Cluster, Probe, command::output, probe::Request};

use super::{log_tail::LogTail, screen::Screen};
use crate::interrupt::Interrupt;

/// Interval of the view. The client sends a request every half of it.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Less than the second after which TCP repeats a SYN.
pub(super) const PATIENCE: Duration = Duration::from_millis(900);

/// Number of answers that are shown.
const TRACE: usize = 70;

/// Number of decisions that are stored, more than a screen can show.
const DECISIONS: usize = 200;

/// Shows `cluster` until an interrupt: redrawn on a terminal, else one line for each change.
///
/// # Errors
/// The client or the log fails.
pub fn show(cluster: &Cluster, page: Option<&str>, interrupt: &Interrupt) -> Result<()> {
    let client = &cluster.topology.client;
    let probe = Probe::start(client, cluster.service(), TICK / 2, PATIENCE)?;
    let mut log = LogTail::open(&cluster.paths.directory.join("manager.log"))?;
    let screen = io::stdout().is_terminal().then(Screen::open).transpose()?;
    if let (None, Some(page)) = (&screen, page) {
        println!("page:    {page}");
    }
    let mut recent = Recent::default();
    while !interrupt.is_requested() {
        while let Some(line) = log.next_line()? {
            recent.add_decision(decision(&line));
        }
        for request in probe.take() {
            let is_new = recent
                .requests
                .back()
                .is_none_or(|it| it.answer != request.answer);
            if is_new && screen.is_none() {
                println!("client:  {}", response_text(&request));
            }
            recent.add_request(request);
        }
        match &screen {
            Some(screen) => {
                let mut lines = head(cluster, page);
                recent.append_to(&mut lines, cluster.service(), screen);
                screen.draw(&lines)?;
            }
            None => recent
                .decisions
                .drain(..)
                .for_each(|it| println!("manager: {it}")),
        }
        thread::sleep(TICK);
    }
    Ok(())
}

fn head(cluster: &Cluster, page: Option<&str>) -> Vec<String> {
    let mut lines = vec![
        "memlb lab: Ctrl-C removes it".into(),
        page.map_or(String::new(), |page| format!("web page: {page}")),
        format!(
            "edit {} or worker2.meminfo beside it to change the selection",
            cluster.paths.memory_file(1).display()
        ),
        String::new(),
    ];
    match output(&mut cluster.memlb("status")) {
        Ok(status) => lines.extend(status.trim_end().lines().map(str::to_owned)),
        Err(error) => lines.push(format!("the manager does not answer: {error:#}")),
    }
    lines
}

/// The last answers and decisions.
#[derive(Default)]
pub(super) struct Recent {
    requests: VecDeque<Request>,
    pub decisions: VecDeque<String>,
}

impl Recent {
    pub fn add_decision(&mut self, decision: Option<String>) {
        self.decisions.extend(decision);
        let surplus = self.decisions.len().saturating_sub(DECISIONS);
        self.decisions.drain(..surplus);
    }

    pub fn add_request(&mut self, request: Request) {
        self.requests.push_back(request);
        let surplus = self.requests.len().saturating_sub(TRACE);
        self.requests.drain(..surplus);
    }

    /// Appends the answers to the client of `service`, and as many decisions as fit the screen.
    pub fn append_to(&self, lines: &mut Vec<String>, service: SocketAddr, screen: &Screen) {
        let last = self.requests.back().map(response_text).unwrap_or_default();
        lines.extend([
            String::new(),
            format!("client: http://{}/ {last}", service.ip()),
            format!("  {}", self.requests.iter().map(character).collect::<String>()),
            "  one character for each request, ten a second: worker's number, M = manager, . = no answer"
                .into(),
            String::new(),
        ]);
        let room = screen.height().saturating_sub(lines.len());
        let first = self.decisions.len().saturating_sub(room);
        lines.extend(self.decisions.range(first..).cloned());
    }
}

/// Shortens a line of the manager's log to time of day and message. Skips heartbeats, which the status shows.
pub(super) fn decision(line: &str) -> Option<String> {
    let (time, message) = line.split_once('Z')?;
    let (_, time) = time.split_once('T')?;
    let message = message.trim_start().trim_start_matches("INFO").trim_start();
    let milliseconds = time.get(..12)?;
    (!message.starts_with("heartbeat of ")).then(|| format!("{milliseconds} {message}"))
}

fn response_text(request: &Request) -> String {
    match &request.answer {
        Ok(page) => {
            let took = request.ended_at - request.sent_at;
            format!("{page} in {:.1} ms", took.as_secs_f64() * 1e3)
        }
        Err(error) => format!("no page: {error}"),
    }
}

fn character(request: &Request) -> char {
    match request.page() {
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
        let heartbeat =
            "2026-11-23T01:08:02.342516Z  INFO heartbeat of worker2: 350.0 MiB available";
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
