//! The settings of this machine's agent, for `memlb doctor --agent`: those of the running agent, or those of the
//! package's service.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use memlb::{doctor::AgentOrigin, keys::AGENT_KEY, processes};
use procfs::process::Process;

use super::{Cli, Verb, agent, error::CliError};

/// The file with the agent's arguments, for the package's service.
const ENVIRONMENT_FILE: &str = "/etc/default/memlb-agent";
const VARIABLE: &str = "MEMLB_AGENT";

/// The settings of an agent on this machine.
pub struct FoundSettings {
    pub arguments: Option<agent::Args>,
    pub origin: AgentOrigin,
    /// Its key, if its arguments do not name one.
    pub usual_key: Option<PathBuf>,
}

/// Finds the settings of the agent that runs here; with `name`, of the agent with this name.
///
/// # Errors
///
/// Several agents run here, and `name` does not select one.
pub fn find(name: Option<&str>) -> Result<FoundSettings, CliError> {
    let mut running: Vec<_> = processes::of_verb("agent")
        .into_iter()
        .filter(|it| it.is_in_this_network)
        .filter_map(|it| Some((it.holder, parse(&it.arguments)?)))
        .filter(|(_, arguments)| match (name, &arguments.name) {
            (Some(wanted), Some(own)) => wanted == own,
            _ => true,
        })
        .collect();
    let several = running.len() > 1;
    let Some((holder, arguments)) = running.pop() else {
        return Ok(of_the_service());
    };
    if several {
        let text = "several agents run here: select one with --name";
        return Err(CliError::usage(text));
    }
    let usual_key = match Process::new(holder.pid).and_then(|it| it.environ()) {
        Ok(environment) => environment
            .get(Path::new("CREDENTIALS_DIRECTORY").as_os_str())
            .filter(|it| Path::new(it).join(agent::CREDENTIAL).exists())
            .and_then(|_| packaged_key()),
        // Another user's process: probably the package's service.
        Err(_) => packaged_key(),
    };
    Ok(FoundSettings {
        arguments: Some(arguments),
        origin: AgentOrigin::Process(holder),
        usual_key,
    })
}

/// The settings of the package's service.
fn of_the_service() -> FoundSettings {
    let text = fs::read_to_string(ENVIRONMENT_FILE).unwrap_or_default();
    let words = variable(&text).unwrap_or_default();
    let words = ["memlb", "agent"]
        .into_iter()
        .chain(words.split_whitespace());
    let arguments = parse(&words.map(str::to_owned).collect::<Vec<_>>());
    let origin = match arguments {
        Some(_) => AgentOrigin::File(ENVIRONMENT_FILE.into()),
        None => AgentOrigin::Options,
    };
    FoundSettings {
        arguments,
        origin,
        usual_key: packaged_key(),
    }
}

/// The key file that the package's service passes to the agent.
fn packaged_key() -> Option<PathBuf> {
    Some(PathBuf::from(AGENT_KEY)).filter(|it| it.exists())
}

fn parse(command_line: &[String]) -> Option<agent::Args> {
    match Cli::try_parse_from(command_line).ok()?.verb {
        Verb::Agent(arguments) if arguments.runs() => Some(arguments),
        _ => None,
    }
}

/// Returns the value of [`VARIABLE`] in an environment file (systemd.exec(5)), the last one if there are several.
fn variable(text: &str) -> Option<String> {
    let text = text.replace("\\\n", " ");
    let mut values = text.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        (name.trim() == VARIABLE).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    });
    values.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_arguments_of_the_service() {
        let text = "# MEMLB_AGENT=\"--manager 10.0.0.1\"\nOTHER=1\n\
                    MEMLB_AGENT=\"--manager 192.168.56.101 \\\n  --name worker1\"\n";
        let words = variable(text).unwrap();
        let line = format!("memlb agent --quiet {words}");
        let line: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let arguments = parse(&line).unwrap();
        assert_eq!(arguments.managers, ["192.168.56.101"]);
        assert_eq!(arguments.name.as_deref(), Some("worker1"));
        assert_eq!(variable("MEMLB_AGENT=\"\""), Some(String::new()));
        for other in ["memlb agent pause --for 30s", "memlb agent", "memlb status"] {
            let line: Vec<String> = other.split_whitespace().map(str::to_owned).collect();
            assert!(parse(&line).is_none(), "{other}");
        }
    }
}
