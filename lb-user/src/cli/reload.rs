//! `memlb reload`: a running manager reads its configuration again.

use memlb::{control::Request, manager::Reloaded};

use super::{error::CliResult, remote::Remote, terminal::Output};

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
    let text = |reloaded: &Reloaded| reloaded_text(reloaded, Output::stdout());
    args.remote.print(&reloaded, text)
}

pub(super) fn reloaded_text(Reloaded { changes, warnings }: &Reloaded, output: Output) -> String {
    let changed = match changes.is_empty() {
        true => "nothing has changed\n".to_owned(),
        false => output.wrap_lines(&changes.join("\n")),
    };
    let warnings = warnings.iter();
    let warnings = warnings.map(|warning| output.warning(warning) + "\n");
    changed + &warnings.collect::<String>()
}
