//! The manager: the loop between the world and the decision core.
//!
//! One task owns core and datapath. Heartbeats, deadlines and the operator's instructions go in,
//! commands come out and are written to the maps at once; whoever asks for the status gets a copy
//! and bothers nobody.

mod happening;
mod instruction;
mod orders_file;
mod start;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::{
    config::Config,
    control::Question,
    core::{Core, Event, Severity},
    datapath::{Datapath, Netlink},
    event_log::EventLog,
    meters::Meters,
    reception::Reception,
    status::{Decided, Interface},
};
use happening::Happening;
pub use instruction::{Instruction, Obedience};
use orders_file::OrdersFile;
pub use orders_file::Written;
use start::{Doors, open};

/// How often the ways to the workers are looked up again.
const ROUTE_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a manager until SIGTERM or SIGINT, and leaves the datapath as it is: traffic flows on, and
/// the next manager adopts it.
///
/// # Errors
///
/// Says what could not be opened, loaded or attached; nothing new stays attached then.
pub async fn run(config: Config) -> Result<()> {
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let (mut manager, mut doors) = open(config).await?;
    let Doors {
        questions,
        instructions,
        netlink,
        terminate,
        interrupt,
        server,
        offices,
        web: _web,
    } = &mut doors;
    let serving = server.serve(offices.clone());
    tokio::pin!(serving);
    let mut route_ticks = interval(ROUTE_INTERVAL);
    route_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = manager.core.poll_timeout();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            received = manager.reception.readable() => {
                received.context("wait for heartbeats")?;
                manager.receive();
            }
            // The proof that a worker lives may have come in this very moment.
            () = until(deadline) => manager.receive(),
            Some(question) = questions.recv() => manager.answer(question),
            Some(instruction) = instructions.recv() => manager.follow(instruction),
            due = route_ticks.tick() => {
                manager.meters.lag(due.elapsed());
                manager.refresh_routes(netlink).await;
            }
            () = &mut serving => {}
        }
        // In every turn, so that a flood of datagrams cannot hold up a deadline.
        let now = Instant::now();
        if let Some(late) = deadline.and_then(|due| now.checked_duration_since(due)) {
            manager.meters.lag(late);
        }
        manager.core.handle_timeout(now);
        manager.carry_out();
    }
    manager.log.append(&Happening::ManagerStopped);
    info!(
        "stopped; the datapath stays and carries on with the last selection (memlb unload removes it)"
    );
    Ok(())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

struct Manager {
    core: Core,
    datapath: Datapath,
    log: EventLog,
    meters: Meters,
    reception: Reception,
    orders_file: OrdersFile,
    interfaces: Vec<Interface>,
    started: Instant,
}

impl Manager {
    fn receive(&mut self) {
        self.reception.receive(&mut self.core, &mut self.log);
    }

    /// Carries out what the core wants written, and tells what it saw.
    fn carry_out(&mut self) {
        while let Some(command) = self.core.poll_command() {
            if let Err(error) = self.datapath.apply(command) {
                let error = format!("{error:#}");
                error!("{error}");
                self.meters.map_write_failed();
                let failed = Happening::MapWriteFailed { error: &error };
                self.log.publish(Severity::Warn, error.clone(), &failed);
            }
        }
        while let Some(event) = self.core.poll_event() {
            self.tell(&event);
        }
    }

    fn tell(&mut self, event: &Event) {
        match event.severity() {
            Severity::Info => info!("{event}"),
            Severity::Warn => warn!("{event}"),
        }
        self.meters.count(event);
        self.log.publish(event.severity(), event.to_string(), event);
    }

    fn answer(&self, question: Question) {
        let now = Instant::now();
        let decided = Decided {
            uptime_ms: u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX),
            interfaces: self.interfaces.clone(),
            services: self.core.snapshot(now).services,
            heartbeats: self.reception.counts().clone(),
        };
        if question.send(decided).is_err() {
            debug!("who asked for the status has gone");
        }
    }

    async fn refresh_routes(&mut self, netlink: &Netlink) {
        if let Err(error) = self.datapath.refresh_routes(netlink).await {
            error!("{error:#}");
        }
    }
}
