//! `memlb deny`: clients whose packets are dropped.

use lb_core::counted;
use memlb::{
    control::{DenyReply, Request},
    deny::{Denied, DenyList, Prefix},
    status::format_time,
};

use super::{
    error::CliResult,
    remote::Remote,
    table::{Cell, Column, Row, table},
    terminal::Output,
};

/// The prefixes of one request: with a reason of the maximum length, it stays below the limit of requests.
const PREFIXES_PER_REQUEST: usize = 40;

/// Deny clients: their packets to any service are dropped
///
/// The manager's own firewall does not see packets that memlb forwards: a ban there has no effect. memlb drops the
/// packets of a denied client, also those of its open connections. The client stays denied until it is removed, also
/// over restarts of the manager and of the machine.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    Add(AddArgs),
    Remove(RemoveArgs),
    List(ListArgs),
}

/// Deny clients, and end the connections that they have open
#[derive(clap::Args)]
struct AddArgs {
    /// ADDRESS or ADDRESS/LENGTH, of IPv4 or IPv6
    #[arg(required = true)]
    prefixes: Vec<Prefix>,

    /// The reason, shown with the entry: one line of at most 1000 bytes
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

/// Let denied clients connect again
#[derive(clap::Args)]
struct RemoveArgs {
    /// The prefixes, as they were denied
    #[arg(required = true)]
    prefixes: Vec<Prefix>,

    #[command(flatten)]
    remote: Remote,
}

/// Show the denied prefixes: by whom, since when and why
#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

pub fn run(args: Args) -> CliResult {
    match args.action {
        Action::Add(args) => change(&args.remote, &args.prefixes, added, |prefixes| {
            Request::Deny {
                prefixes,
                reason: args.reason.clone(),
            }
        }),
        Action::Remove(args) => change(&args.remote, &args.prefixes, removed, |prefixes| {
            Request::Allow { prefixes }
        }),
        Action::List(ListArgs { remote }) => {
            let list: DenyList = remote.request(&Request::ListDenied)?;
            remote.print(&list, |list| listed(list, Output::stdout()))
        }
    }
}

fn change(
    remote: &Remote,
    prefixes: &[Prefix],
    text: impl Fn(&DenyReply, Output) -> String,
    request: impl Fn(Vec<Prefix>) -> Request,
) -> CliResult {
    let mut all = DenyReply::default();
    for prefixes in prefixes.chunks(PREFIXES_PER_REQUEST) {
        let answer: DenyReply = remote.request(&request(prefixes.to_vec()))?;
        all.changed.extend(answer.changed);
        all.connections_ended += answer.connections_ended;
        all.warnings.extend(answer.warnings);
        all.not_saved = answer.not_saved.or(all.not_saved);
    }
    remote.print(&all, |answer| text(answer, Output::stdout()))
}

pub(super) fn added(answer: &DenyReply, output: Output) -> String {
    let lines = answer.changed.iter().map(|denied| format!("{denied}\n"));
    let ended = match answer.connections_ended {
        0 => String::new(),
        count => format!("ended {}\n", counted(count, "open connection")),
    };
    let text: String = lines.chain([ended]).collect();
    output.wrap_lines(&text) + &warnings(answer, output)
}

fn removed(answer: &DenyReply, output: Output) -> String {
    let prefixes = answer.changed.iter().map(|denied| denied.prefix);
    let text: String = prefixes
        .map(|prefix| format!("{prefix} is no longer denied\n"))
        .collect();
    output.wrap_lines(&text) + &warnings(answer, output)
}

fn warnings(answer: &DenyReply, output: Output) -> String {
    let not_saved = answer.not_saved.as_ref();
    let not_saved =
        not_saved.map(|why| format!("the change is lost at a restart of the manager: {why}"));
    let all = answer.warnings.iter().cloned().chain(not_saved);
    all.map(|warning| output.warning(&warning) + "\n").collect()
}

fn listed(list: &DenyList, output: Output) -> String {
    if list.is_empty() {
        return "no client is denied\n".to_owned();
    }
    let columns = [
        Column::word("prefix", 0),
        Column::word("since", 2),
        Column::name("by", 1),
        Column::remark("reason"),
    ];
    let rows: Vec<Row> = list.iter().map(row).collect();
    table(&columns, &rows, 0, output)
}

fn row(denied: &Denied) -> Row {
    Row::new(vec![
        Cell::new(denied.prefix.to_string()),
        Cell::new(format_time(denied.at_ms)),
        Cell::new(denied.by.clone()),
        Cell::new(denied.reason.clone().unwrap_or_default()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_who_is_denied_and_why() {
        let listed = |list: &DenyList| {
            let (width, has_color) = (None, false);
            super::listed(list, Output { width, has_color })
        };
        assert_eq!(listed(&DenyList::default()), "no client is denied\n");
        let denied = Denied {
            prefix: "10.0.0.0/8".parse().unwrap(),
            by: "root".to_owned(),
            at_ms: 0,
            reason: Some("scans".to_owned()),
        };
        assert_eq!(
            listed(&DenyList::from(vec![denied])),
            "prefix      since                 by    reason\n\
             10.0.0.0/8  1970-01-01T00:00:00Z  root  scans\n"
        );
    }
}
