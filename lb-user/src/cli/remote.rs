//! The options and the client of verbs that need a running manager.

use std::path::PathBuf;

use memlb::control::{ClientError, ControlClient, Request};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::CliResult,
    output::{print, print_json},
    runtime::block_on,
    source::USUAL_CONFIG,
};

const USUAL_SOCKET: &str = "/run/memlb/manager.sock";

/// The environment variable that names the control socket for every verb.
const SOCKET_VARIABLE: &str = "MEMLB_CONTROL_SOCKET";

/// The manager, and the form of the output.
#[derive(clap::Args)]
pub struct Remote {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    socket: ControlSocket,
}

/// The manager's control socket.
#[derive(clap::Args)]
pub struct ControlSocket {
    /// The manager's control socket [default: $MEMLB_CONTROL_SOCKET, else the one in /etc/memlb/memlb.toml, else
    /// /run/memlb/manager.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

impl Remote {
    pub fn client(&self) -> ControlClient {
        self.socket.client()
    }

    pub fn request<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        block_on(self.client().request(request))
    }

    /// Prints `value` as JSON with `--json`, else in the format of `text`.
    pub fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> CliResult {
        if self.json {
            return print_json(value);
        }
        print(&text(value));
        Ok(())
    }
}

impl ControlSocket {
    pub fn client(&self) -> ControlClient {
        let given = self.control_socket.clone();
        let path = given.or_else(socket_variable).or_else(configured_socket);
        ControlClient::new(path.unwrap_or_else(|| PathBuf::from(USUAL_SOCKET)))
    }
}

/// The socket that the environment names.
pub fn socket_variable() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(SOCKET_VARIABLE)?);
    (!path.as_os_str().is_empty()).then_some(path)
}

/// The socket in the usual configuration file, without validation of the rest.
fn configured_socket() -> Option<PathBuf> {
    let text = std::fs::read_to_string(USUAL_CONFIG).ok()?;
    let file: toml::Table = text.parse().ok()?;
    Some(file.get("manager")?.get("control_socket")?.as_str()?.into())
}
