//! Why a worker that is up cannot serve: the route to it, or what the service's mode needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::health::Health;
use crate::settings::BackendSettings;

/// The manager's route to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerRoute {
    /// Without a router; also before the first look-up.
    Direct,
    ViaRouter,
    Missing,
    /// Through the interface of this name, which memlb is not attached to.
    Unattached(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ineligibility {
    /// The manager has no route to it.
    NoRoute,
    /// The route leads through an interface that memlb is not attached to: no reply would reach a client.
    OtherInterface,
    /// In mode `dsr`: its agent does not report a DSR translator that translates the service.
    NoDsrTranslator,
    /// In mode `dsr`: a router is on the way, which would route packets for the service's address back.
    OtherLink,
    /// In mode `routed`: the worker's replies do not pass the manager.
    NoReturnPath,
}

impl Ineligibility {
    /// Returns the state of a backend that would be up without it.
    pub fn state(self) -> Health {
        match self {
            Self::NoRoute | Self::OtherInterface | Self::NoReturnPath => Health::Unreachable,
            Self::NoDsrTranslator | Self::OtherLink => Health::Ineligible,
        }
    }

    /// Returns the reason in a sentence, with the remedy.
    pub fn explain(
        self,
        backend: &BackendSettings,
        route: &WorkerRoute,
        service: Endpoint,
    ) -> String {
        let BackendSettings {
            worker, address, ..
        } = backend;
        let ip = address.ip();
        match self {
            Self::NoRoute => format!(
                "the manager has no route to {worker} at {ip}: correct the address or the routes (ip \
                 route get {ip})"
            ),
            Self::OtherInterface => {
                let interface = match route {
                    WorkerRoute::Unattached(name) => name.as_str(),
                    _ => "another interface",
                };
                format!(
                    "the route to {worker} at {ip} leads through {interface}, to which memlb is \
                     not attached: add it to manager.interfaces and restart the manager, or correct \
                     the route (ip route get {ip})"
                )
            }
            Self::NoDsrTranslator => {
                format!("{worker} has no DSR translator for {service}: start its agent with --dsr")
            }
            Self::OtherLink => format!(
                "{worker} is behind a router, and mode \"dsr\" needs it on the manager's own link: \
                 move it there, or serve {service} by mode \"nat\""
            ),
            Self::NoReturnPath => format!(
                "no answer of {worker} passes the manager: its route to the clients does not lead through \
                 the manager, or it drops their connections (on {worker}: ip route get CLIENT); correct that, \
                 or serve {service} by mode \"nat\". memlb tries it again later"
            ),
        }
    }
}
