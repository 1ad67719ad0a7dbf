//! The packet trace: one at a time, and only while its client is connected.

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
    handlers::{check_names, line_of},
    request_error::RequestError,
    send,
};
use crate::{
    datapath::{self, KernelTrace},
    manager::ManagerHandle,
    trace::{Dropped, Names, TraceFilter, TraceLine},
};

/// How often the trace filter is renewed: several times before it expires.
const RENEWAL: Duration = Duration::from_secs(1);

/// The user whose trace runs, if any: the kernel programs have one trace filter.
#[derive(Debug, Clone, Default)]
pub struct TraceLocks(Arc<Mutex<Option<String>>>);

/// Held during a trace.
struct TraceLock(TraceLocks);

impl TraceLocks {
    fn acquire(&self, user: String) -> Result<TraceLock, RequestError> {
        let mut holder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*holder {
            return Err(RequestError::RunTime(anyhow::anyhow!(
                "a trace of {other} is running, and only one can run at a time: end it first"
            )));
        }
        *holder = Some(user);
        Ok(TraceLock(self.clone()))
    }
}

impl Drop for TraceLock {
    fn drop(&mut self) {
        let TraceLocks(holder) = &self.0;
        *holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A running trace.
pub(super) struct TraceSession {
    kernel: KernelTrace,
    names: Names,
    count: Option<u64>,
    duration: Option<Duration>,
    _lock: TraceLock,
}

/// Starts a trace.
pub(super) async fn start(
    filter: &TraceFilter,
    user: String,
    locks: &TraceLocks,
    manager: &ManagerHandle,
) -> Result<TraceSession, RequestError> {
    let services = manager.snapshot().await?.services;
    check_names(&services, &filter.service, &filter.worker)?;
    let numbers = datapath::service_ids(manager.pin_path())?;
    let order = filter.config(&services, |service| {
        let is_it = |(_, at): &&(_, lb_core::Endpoint)| {
            at.address.to_string() == service.address && at.protocol == service.protocol
        };
        numbers.iter().find(is_it).map(|(id, _)| *id)
    });
    let order = order.map_err(|error| RequestError::Usage(error.into()))?;
    let lock = locks.acquire(user)?;
    Ok(TraceSession {
        kernel: KernelTrace::start(manager.pin_path(), order)?,
        names: Names::new(&services)?,
        count: filter.count,
        duration: filter.duration_ms.map(Duration::from_millis),
        _lock: lock,
    })
}

impl TraceSession {
    /// Sends packets until the count or the duration is reached, or the client closes the connection.
    pub async fn run(
        mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut WriteHalf<'_>,
        manager: &ManagerHandle,
    ) -> Result<()> {
        send_line(writer, &TraceLine::Begun).await?;
        let mut packets = 0;
        let mut dropped = Dropped::default();
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut timeout = pin!(async {
            match self.duration {
                Some(duration) => sleep(duration).await,
                None => std::future::pending().await,
            }
        });
        while self.count.is_none_or(|count| packets < count) {
            let mut rest = [0];
            tokio::select! {
                () = &mut timeout => break,
                // A client sends nothing after its request: this is the end of the connection.
                _ = reader.read(&mut rest) => return Ok(()),
                _ = renewal.tick() => {
                    self.kernel.renew()?;
                    self.names = Names::new(&manager.snapshot().await?.services)?;
                    let now = Dropped::from(self.kernel.counts()?);
                    if now != dropped {
                        dropped = now;
                        send_line(writer, &TraceLine::Dropped(dropped)).await?;
                    }
                }
                event = self.kernel.next() => {
                    packets += 1;
                    let packet = crate::trace::Packet::new(&event?, &self.names);
                    send_line(writer, &TraceLine::Packet(Box::new(packet))).await?;
                }
            }
        }
        let dropped = self.kernel.counts()?.into();
        send_line(writer, &TraceLine::End { packets, dropped }).await
    }
}

async fn send_line(writer: &mut WriteHalf<'_>, line: &impl Serialize) -> Result<()> {
    send(writer, &line_of(line)?)
        .await
        .context("send a line of the trace")
}
