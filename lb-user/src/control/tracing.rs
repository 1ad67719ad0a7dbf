//! The trace, for one operator at a time: told while somebody reads it, and no longer.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::WriteHalf,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Offices,
    answers::{Refusal, decided, is_known, line_of},
    server::send,
};
use crate::{
    datapath::{self, Tracing},
    trace::{Line, Missed, Names, Wanted},
};

/// How often the kernel is told that somebody still reads: several times before it would take him
/// for gone.
const RENEWAL: Duration = Duration::from_secs(1);

/// Who traces at present: the kernel programs know one order at a time.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Arc<Mutex<Option<String>>>);

/// Held by who traces.
struct Turn(Tracer);

impl Tracer {
    fn take(&self, user: String) -> Result<Turn, Refusal> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*present {
            return Err(Refusal::RunTime(anyhow::anyhow!(
                "{other} traces already, and only one can at a time: end that one first"
            )));
        }
        *present = Some(user);
        Ok(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Tracer(present) = &self.0;
        *present.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A trace that has begun.
pub(super) struct Told {
    tracing: Tracing,
    names: Names,
    count: Option<u64>,
    duration: Option<Duration>,
    _turn: Turn,
}

/// Begins a trace.
pub(super) async fn begin(
    wanted: &Wanted,
    user: String,
    offices: &Offices,
) -> Result<Told, Refusal> {
    let services = decided(offices).await?.services;
    is_known(
        &services,
        wanted.service.as_deref(),
        wanted.worker.as_deref(),
    )?;
    let numbers = datapath::service_numbers(&offices.pin_path)?;
    let order = wanted.order(&services, |service| {
        let is_it = |(_, at): &&(_, lb_core::Endpoint)| {
            at.address.to_string() == service.address && at.protocol == service.protocol
        };
        numbers.iter().find(is_it).map(|(id, _)| *id)
    });
    let order = order.map_err(|error| Refusal::Usage(error.into()))?;
    let turn = offices.tracer.take(user)?;
    Ok(Told {
        tracing: Tracing::begin(&offices.pin_path, order)?,
        names: Names::new(&services)?,
        count: wanted.count,
        duration: wanted.duration_ms.map(Duration::from_millis),
        _turn: turn,
    })
}

impl Told {
    /// Tells packets until it is enough, or the reader has gone.
    pub async fn tell(
        mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut WriteHalf<'_>,
        offices: &Offices,
    ) -> Result<()> {
        say(writer, &Line::Begun).await?;
        let mut told = 0;
        let mut missed = Missed::default();
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut enough = pin!(async {
            match self.duration {
                Some(duration) => sleep(duration).await,
                None => std::future::pending().await,
            }
        });
        while self.count.is_none_or(|count| told < count) {
            let mut rest = [0];
            tokio::select! {
                () = &mut enough => break,
                // Nothing more is expected of the reader, but that it goes.
                _ = reader.read(&mut rest) => return Ok(()),
                _ = renewal.tick() => {
                    self.tracing.renew()?;
                    self.names = Names::new(&decided(offices).await?.services)?;
                    let now = Missed::from(self.tracing.counts()?);
                    if now != missed {
                        missed = now;
                        say(writer, &Line::Missed(missed)).await?;
                    }
                }
                event = self.tracing.next() => {
                    told += 1;
                    let packet = crate::trace::Packet::new(&event?, &self.names);
                    say(writer, &Line::Packet(Box::new(packet))).await?;
                }
            }
        }
        let missed = self.tracing.counts()?.into();
        let packets = told;
        say(writer, &Line::End { packets, missed }).await
    }
}

async fn say(writer: &mut WriteHalf<'_>, line: &impl Serialize) -> Result<()> {
    send(writer, &line_of(line)?).await.context("tell a packet")
}
