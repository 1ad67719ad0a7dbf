//! `memlb reload`: a running manager reads its configuration again.

use memlb::{control::Request, manager::Reloaded};

use super::{CliResult, remote::Remote};

/// Make the manager read its configuration again; no connection is lost
///
/// The manager validates the file as a whole and applies it as a whole, or not at all. SIGHUP does the
/// same; the result is in the log.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: &Args) -> CliResult {
    let reloaded: Reloaded = args.remote.request(&Request::Reload)?;
    args.remote
        .print(&reloaded, |Reloaded { changes, warnings }| {
            let mut text: String = changes.iter().map(|change| format!("{change}\n")).collect();
            if changes.is_empty() {
                text += "nothing has changed\n";
            }
            for warning in warnings {
                text += &format!("warning: {warning}\n");
            }
            text
        })
}
