//! `memlb trace`: its filter, and its output with the names of services and workers.

mod clients;
mod names;
mod packet;

use std::fmt;

use lb_common::{
    maps::{NO_ID, TRACED_BACKENDS, TraceConfig, TraceCounts},
    verdict::Verdict,
};
use lb_core::{ServiceId, ServiceSnapshot};
use serde::{Deserialize, Serialize};

pub use clients::Clients;
pub use names::Names;
pub use packet::Packet;

/// The default rate, in packets a second.
pub const DEFAULT_RATE: u32 = 100;
/// The highest rate, in packets a second.
pub const MAX_RATE: u32 = 10_000;

/// The verdicts of packets that belong to no service.
const OF_NO_SERVICE: [Verdict; 4] = [
    Verdict::NotIp,
    Verdict::OtherProtocol,
    Verdict::NotOurs,
    Verdict::NotForUs,
];

/// Selects packets, and limits the trace; all given criteria must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceFilter {
    pub client: Option<Clients>,
    pub service: Option<String>,
    pub worker: Option<String>,
    /// Empty: all verdicts; without any criterion, only those of packets that belong to a service.
    pub verdicts: Vec<String>,
    /// Without any criterion, also show packets that belong to no service.
    pub all: bool,
    /// The most packets a second.
    pub rate: u32,
    /// One packet in so many, at random.
    pub sample: u32,
    /// The trace ends after so many packets, or after `duration_ms`.
    pub count: Option<u64>,
    pub duration_ms: Option<u64>,
}

impl Default for TraceFilter {
    fn default() -> Self {
        Self {
            client: None,
            service: None,
            worker: None,
            verdicts: Vec::new(),
            all: false,
            rate: DEFAULT_RATE,
            sample: 1,
            count: None,
            duration_ms: None,
        }
    }
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TraceLine {
    /// The trace runs.
    Begun,
    Packet(Box<Packet>),
    /// Matching packets since the start that are not shown.
    Dropped(Dropped),
    End {
        packets: u64,
        dropped: Dropped,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Packets beyond the rate.
    pub over_rate: u64,
    /// Packets for which the ring buffer was full.
    pub no_room: u64,
}

impl From<TraceCounts> for Dropped {
    fn from(counts: TraceCounts) -> Self {
        Self {
            over_rate: counts.over_rate,
            no_room: counts.no_room,
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over the rate", self.over_rate)?;
        if self.no_room > 0 {
            write!(f, ", {} faster than they could be read", self.no_room)?;
        }
        Ok(())
    }
}

/// Why a [`TraceFilter`] cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceFilterError {
    #[error("unknown verdict {0:?}: expected one of {names}", names = names_of_verdicts())]
    UnknownVerdict(String),
    #[error("a rate of {0} packets a second: expected 1 to {MAX_RATE}")]
    Rate(u32),
    #[error("worker {worker:?} does not serve {service:?}")]
    NotServed { worker: String, service: String },
    #[error(
        "worker {0:?} serves more than {TRACED_BACKENDS} services: name one of them with --service"
    )]
    TooManyServices(String),
    #[error("service {0:?} is not in the maps yet")]
    NotOpen(String),
}

fn names_of_verdicts() -> String {
    let names: Vec<_> = Verdict::ALL.iter().map(|it| it.name()).collect();
    names.join(", ")
}

impl TraceFilter {
    /// Returns the programs' filter. The names of service and worker must exist; `id_of` returns the id of a service.
    ///
    /// # Errors
    ///
    /// Names the criterion that cannot be applied.
    pub fn config(
        &self,
        services: &[ServiceSnapshot],
        id_of: impl Fn(&ServiceSnapshot) -> Option<ServiceId>,
    ) -> Result<TraceConfig, TraceFilterError> {
        if !(1..=MAX_RATE).contains(&self.rate) {
            return Err(TraceFilterError::Rate(self.rate));
        }
        let mut config = TraceConfig {
            verdicts: self.verdict_bits()?,
            rate: self.rate,
            sample: self.sample,
            ..TraceConfig::ALL
        };
        if let Some(client) = self.client {
            client.apply_to(&mut config);
        }
        let named =
            |it: &&ServiceSnapshot| self.service.as_ref().is_none_or(|name| it.name == *name);
        if let Some(name) = &self.service {
            let service = services.iter().find(named).and_then(id_of);
            let ServiceId(id) = service.ok_or_else(|| TraceFilterError::NotOpen(name.clone()))?;
            config.service = id;
        }
        if let Some(worker) = &self.worker {
            let backends = services.iter().filter(named).flat_map(|it| &it.backends);
            let ids = backends.filter(|it| it.name == *worker);
            let ids: Vec<u32> = ids.map(|it| it.backend_id.0).collect();
            let backends = config.backends.get_mut(..ids.len());
            let backends =
                backends.ok_or_else(|| TraceFilterError::TooManyServices(worker.clone()))?;
            backends.copy_from_slice(&ids);
            config.backend_count = ids.len() as u32;
            if ids.is_empty() {
                return Err(TraceFilterError::NotServed {
                    worker: worker.clone(),
                    service: self.service.clone().unwrap_or_default(),
                });
            }
        }
        Ok(config)
    }

    /// Whether the filter shows only packets that belong to a service.
    pub fn is_of_services(&self) -> bool {
        let Self {
            client,
            service,
            worker,
            verdicts,
            all,
            ..
        } = self;
        client.is_none() && service.is_none() && worker.is_none() && verdicts.is_empty() && !all
    }

    fn verdict_bits(&self) -> Result<u64, TraceFilterError> {
        if self.is_of_services() {
            let others = OF_NO_SERVICE.iter().map(|it| 1 << *it as u32);
            return Ok(others.fold(u64::MAX, |all, bit: u64| all & !bit));
        }
        if self.verdicts.is_empty() {
            return Ok(u64::MAX);
        }
        let bit = |name: &String| {
            let verdict = Verdict::from_name(name);
            let verdict = verdict.ok_or_else(|| TraceFilterError::UnknownVerdict(name.clone()))?;
            Ok(1 << verdict as u32)
        };
        let bits: Result<Vec<u64>, _> = self.verdicts.iter().map(bit).collect();
        Ok(bits?.into_iter().fold(0, |all, bit| all | bit))
    }
}

const _: () = assert!(Verdict::COUNT <= 64 && NO_ID == u32::MAX);
