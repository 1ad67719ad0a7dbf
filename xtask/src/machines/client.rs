//! Requests from this machine, which is the lab's client.

use std::{process::Command, thread, time::Duration};

use anyhow::Result;
use memlb_tests::{command::output, wait_until};

use super::{network::NAMESPACE, node::LAB};
use crate::interrupt::Interrupt;

/// Deadline for the Swarm and memlb to change the page.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Waits until memlb's service returns a worker's page.
pub fn wait_for_worker(interrupt: &Interrupt) -> Result<Duration> {
    let what = "a worker to serve through memlb";
    wait_for_page(what, &service(), "Worker", interrupt)
}

/// Waits until the page at `url` begins with `page`. Returns how long that took.
pub fn wait_for_page(what: &str, url: &str, page: &str, interrupt: &Interrupt) -> Result<Duration> {
    let took = wait_until(PATIENCE, what, || {
        let got = get(url).is_ok_and(|got| got.starts_with(page)) || interrupt.is_requested();
        if !got {
            // Each request takes the machines' processor time.
            thread::sleep(Duration::from_millis(500));
        }
        got
    })?;
    interrupt.check()?;
    Ok(took)
}

/// Returns the URL of memlb's service.
pub fn service() -> String {
    format!("http://{}/", LAB[0].address)
}

/// Returns the page at `url`.
pub fn get(url: &str) -> Result<String> {
    let page = output(
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{NAMESPACE}"))
            .args(["curl", "--silent", "--fail", "--max-time", "2", url]),
    )?;
    Ok(page.trim().to_owned())
}
