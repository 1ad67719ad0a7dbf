//! The connection of verbs to a running manager.

use std::{path::PathBuf, time::Duration};

use memlb::control::{ClientError, ControlClient, Request};
use serde::{Serialize, de::DeserializeOwned};

use super::{block_on, source::USUAL_CONFIG};

const USUAL_SOCKET: &str = "/run/memlb/manager.sock";

/// Names the control socket for every verb.
pub const SOCKET_VARIABLE: &str = "MEMLB_CONTROL_SOCKET";

/// Which manager is asked, and the form of the output.
#[derive(clap::Args)]
pub struct Remote {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The manager's control socket [default: $MEMLB_CONTROL_SOCKET, else the one in /etc/memlb/memlb.toml, else
    /// /run/memlb/manager.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

impl Remote {
    pub fn client(&self) -> ControlClient {
        client(self.control_socket.clone())
    }

    pub fn request<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        block_on(self.client().request(request))
    }

    /// Prints `value` as JSON with `--json`, else as `text` formats it.
    pub fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> super::CliResult {
        if self.json {
            return super::print_json(value);
        }
        super::print(&text(value));
        Ok(())
    }
}

/// Connects to the manager at `socket`, or else at the usual one.
pub fn client(socket: Option<PathBuf>) -> ControlClient {
    let path = socket.or_else(socket_variable).or_else(configured_socket);
    ControlClient::new(path.unwrap_or_else(|| PathBuf::from(USUAL_SOCKET)))
}

/// The socket that the environment names.
pub fn socket_variable() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(SOCKET_VARIABLE)?);
    (!path.as_os_str().is_empty()).then_some(path)
}

/// The socket of a manager that runs with the usual file. The rest of the file is not validated.
fn configured_socket() -> Option<PathBuf> {
    let text = std::fs::read_to_string(USUAL_CONFIG).ok()?;
    let file: toml::Table = text.parse().ok()?;
    Some(file.get("manager")?.get("control_socket")?.as_str()?.into())
}

/// Formats a duration in whole seconds, such as `2m 5s`.
pub fn format_seconds(milliseconds: u64) -> String {
    let rounded = Duration::from_secs(milliseconds / 1000);
    humantime::format_duration(rounded).to_string()
}
