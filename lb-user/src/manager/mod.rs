//! The manager: the loop between the world and the decision core.
//!
//! One task owns core and datapath. Heartbeats, deadlines and the operator's instructions go in,
//! commands come out and are written to the maps at once; whoever asks for the status gets a copy
//! and bothers nobody.

mod denying;
mod happening;
mod instruction;
mod joined;
mod joining;
mod kept;
mod mend;
mod nat_ports;
mod pins;
mod recounting;
mod reload;
mod silences;
mod start;
mod surveyor;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_core::{AdminOverrides, Core, CoreSettings, Event, Severity};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    control::{Offices, Question},
    datapath::{Datapath, Pins, Stats},
    deny::DenyList,
    event_log::EventLog,
    history::History,
    meters::Meters,
    reception::Reception,
    status::{Decided, Interface},
    supervisor::{self, Watchdog},
};
pub use denying::{DenyChange, DenyOutcome};
use happening::Happening;
pub use instruction::{Instruction, Obedience};
pub use joined::{Joined, Unfit};
use kept::Kept;
pub use kept::Written;
use nat_ports::NatPorts;
use recounting::Recounting;
pub use reload::{Reload, ReloadError, Reloader, Reread};
use silences::Silences;
use start::{Doors, open};
use surveyor::Surveyor;

/// How often it is looked whether connections of removed workers have ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// How often the loop looks how late it is, and after what can wait.
const TICK: Duration = Duration::from_secs(2);

/// How often it is looked whether programs and pins are where they should be.
const ATTACHMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a manager until SIGTERM or SIGINT, and leaves the datapath as it is: traffic flows on, and
/// the next manager adopts it.
///
/// # Errors
///
/// Says what could not be opened, loaded or attached; nothing new stays attached then.
/// `config_file` is where the configuration was read, and `reread` how a reload gets at it once it has
/// changed.
pub async fn run(config: Config, config_file: Option<PathBuf>, reread: Reread) -> Result<()> {
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let (mut manager, mut doors) = open(config, config_file, reread).await?;
    let Doors {
        questions,
        instructions,
        terminate,
        interrupt,
        hangup,
        server,
        offices,
        web: _web,
    } = &mut doors;
    let serving = server.serve(offices.clone());
    tokio::pin!(serving);
    let _recounting = Recounting::start(offices.pin_path.clone());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silences = interval(silences::INTERVAL);
    silences.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut attachments = interval(ATTACHMENT_INTERVAL);
    attachments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = Watchdog::start();
    supervisor::ready();
    loop {
        let deadline = manager.core.poll_timeout();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload::on_hangup(offices.reloader.clone()),
            received = manager.reception.readable() => {
                received.context("wait for heartbeats")?;
                manager.receive();
            }
            // The proof that a worker lives may have come in this very moment.
            () = until(deadline) => manager.receive(),
            Some(question) = questions.recv() => manager.answer(question),
            Some(instruction) = instructions.recv() => manager.follow(instruction),
            due = ticks.tick() => {
                manager.forget_the_gone();
                manager.check_nat_ports();
                manager.meters.lag(due.elapsed());
                manager.look_for_parted(offices);
                manager.look_at_answers();
            }
            _ = silences.tick() => manager.keep_silences(),
            _ = attachments.tick() => manager.look_at_attachments(),
            () = watchdog.is_due() => watchdog.pat(),
            () = &mut serving => {}
        }
        manager.look_for_applicants(&offices.instructions);
        // In every turn, so that a flood of datagrams cannot hold up a deadline.
        let now = Instant::now();
        if let Some(late) = deadline.and_then(|due| now.checked_duration_since(due)) {
            manager.meters.lag(late);
        }
        manager.count_connections(now);
        manager.core.handle_timeout(now);
        manager.carry_out();
    }
    supervisor::stopping();
    manager.log.append(&Happening::ManagerStopped);
    manager.log.finish();
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
    /// With the workers that joined by themselves.
    config: Config,
    /// Without them.
    file: Config,
    /// Where that was read; nothing for the built-in example.
    config_file: Option<PathBuf>,
    joined: Joined,
    joined_file: Kept<Joined>,
    settings: CoreSettings,
    surveyor: Surveyor,
    /// Whether maps may lack what they should hold, and whether that is so since just now.
    writes_fail: bool,
    nat_ports: NatPorts,
    write_failed_now: bool,
    core: Core,
    datapath: Datapath,
    pins: Pins,
    /// Whether pins cannot be put back, so that this is said once.
    pins_fail: bool,
    log: EventLog,
    history: History,
    meters: Meters,
    reception: Reception,
    /// Whether the ways to agents that have applied are being looked up.
    admitting: bool,
    orders_file: Kept<AdminOverrides>,
    denied: DenyList,
    denied_file: Kept<DenyList>,
    /// Held as long as this manager writes the state file.
    _state_lock: Option<kept::Lock>,
    /// As last kept.
    silences: Silences,
    silences_file: Kept<Silences>,
    interfaces: Vec<Interface>,
    started: Instant,
    /// When connections of backends that are no longer configured were last counted.
    swept: Instant,
}

impl Manager {
    fn receive(&mut self) {
        self.reception.receive(&mut self.core, &self.log);
        for (worker, pause) in self.reception.take_announced() {
            self.pause_announced(worker, pause);
        }
    }

    /// Tells the core what is open where, when it is about to look at weights.
    fn count_connections(&mut self, now: Instant) {
        if !self.core.wants_connections(now) {
            return;
        }
        match self.datapath.open_connections() {
            Ok(open) => self.core.handle_connections(&open),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Carries out what the core wants written, and tells what it saw.
    fn carry_out(&mut self) {
        while let Some(command) = self.core.poll_map_update() {
            if let Err(error) = self.datapath.apply(command) {
                self.map_write_failed(&error);
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
        if matches!(event, Event::PauseEnded { .. }) {
            self.orders_file.keep(self.core.admin_overrides().clone());
        }
        self.meters.count(event);
        let service = event
            .decided()
            .and_then(|name| self.core.snapshot_of(name, Instant::now()));
        if let Some(service) = service {
            self.history.record(event.to_string(), service);
        }
        self.log.publish(event.severity(), event.to_string(), event);
    }

    fn answer(&self, question: Question) {
        let now = Instant::now();
        let decided = Decided {
            uptime_ms: u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX),
            config_file: self.config_file.clone(),
            interfaces: self.interfaces.clone(),
            services: self.core.snapshot(now).services,
            heartbeats: self.reception.counts(now),
            denied_prefixes: self.denied.len(),
        };
        if question.send(decided).is_err() {
            debug!("who asked for the status has gone");
        }
    }

    /// Has the connections counted, aside of this task, of backends that are no longer configured.
    fn look_for_parted(&mut self, offices: &Offices) {
        if self.datapath.parting() == 0 || self.swept.elapsed() < SWEEP_INTERVAL {
            return;
        }
        self.swept = Instant::now();
        let (instructions, pin_path) = (offices.instructions.clone(), offices.pin_path.clone());
        let generation = self.datapath.generation();
        tokio::spawn(async move {
            match tokio::task::spawn_blocking(move || Stats::read(&pin_path)).await {
                // The manager's end is this task's, too.
                Ok(Ok(stats)) => {
                    _ = instructions
                        .send(Instruction::Sweep(stats, generation))
                        .await;
                }
                Ok(Err(error)) => debug!("count the connections of parting backends: {error:#}"),
                Err(error) => debug!("count the connections of parting backends: {error}"),
            }
        });
    }
}
