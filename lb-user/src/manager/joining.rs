//! How agents become workers by starting, and how they are forgotten.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_core::Severity;
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Instruction, Manager, joined::Unfit, reload};
use crate::{datapath::Routes, reception::Applicant};

/// How long a worker that joined by itself may be gone before it is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3_600);

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Joining<'a> {
    WorkerJoined { worker: &'a str, address: IpAddr },
    WorkerForgotten { worker: &'a str },
}

impl Manager {
    /// Has the ways looked up, aside of this task, to the agents that have proved who they are and may
    /// be workers.
    pub(super) fn look_for_applicants(&mut self, instructions: &mpsc::Sender<Instruction>) {
        if self.admitting {
            return;
        }
        let applicants = self.reception.applicants();
        let addresses: BTreeSet<IpAddr> = applicants.iter().map(Applicant::address).collect();
        if addresses.is_empty() {
            return;
        }
        self.admitting = true;
        let instructions = instructions.clone();
        tokio::spawn(async move {
            let routes = reload::routes(&addresses).await;
            // The manager's end is this task's, too.
            _ = instructions
                .send(Instruction::Admit(addresses, routes))
                .await;
        });
    }

    /// Takes in who has applied from these addresses, to which the ways were looked up.
    pub(super) fn admit_applicants(&mut self, addresses: &BTreeSet<IpAddr>, routes: &Routes) {
        self.admitting = false;
        let applicants = self.reception.take_applicants(addresses);
        let mut admitted = Vec::new();
        for applicant in applicants {
            match self.admit(&applicant) {
                Ok(()) => admitted.push(applicant),
                Err(unfit) => self.reception.turn_away(&self.log, &applicant, &unfit),
            }
        }
        if admitted.is_empty() {
            return;
        }
        self.rearrange(routes);
        // Their heartbeats were the reason, and count.
        for applicant in admitted {
            let now = Instant::now();
            self.reception
                .welcome(&mut self.core, &self.log, applicant, now);
        }
        self.carry_out();
    }

    fn admit(&mut self, applicant: &Applicant) -> Result<(), Unfit> {
        let address = applicant.address();
        let now = Instant::now();
        let worker = applicant.worker();
        let (core, down_after) = (&self.core, self.config.failover.down_after);
        let present = |worker: &str| {
            core.silent_for(worker, now)
                .is_some_and(|silence| silence <= down_after)
        };
        let parting = self.datapath.parting();
        self.joined
            .admit(&self.file, worker, address, parting, present)?;
        let message = format!("{worker} has joined by itself, at {address}");
        info!("{message}");
        let event = Joining::WorkerJoined { worker, address };
        self.log.publish(Severity::Info, message, &event);
        Ok(())
    }

    /// Forgets the workers that joined and have been gone for long.
    pub(super) fn forget_the_gone(&mut self) {
        let now = Instant::now();
        let gone = |worker: &&str| {
            self.core
                .silent_for(worker, now)
                .is_none_or(|silence| silence > FORGOTTEN_AFTER)
        };
        let workers = self.joined.iter().map(|(worker, _)| worker);
        let forgotten: Vec<String> = workers.filter(gone).map(str::to_owned).collect();
        if forgotten.is_empty() {
            return;
        }
        for worker in &forgotten {
            self.joined.forget(worker);
            let message = format!("{worker}, which had joined by itself, is gone and forgotten");
            info!("{message}");
            let event = Joining::WorkerForgotten { worker };
            self.log.publish(Severity::Info, message, &event);
        }
        self.rearrange(&Routes::new());
    }

    /// Brings core and datapath in line with who has joined, and keeps that for the next manager.
    fn rearrange(&mut self, routes: &Routes) {
        self.joined_file.keep(self.joined.clone());
        self.reception.expect(&self.joined);
        match self.datapath.numbers() {
            Ok(numbers) => {
                let config = self.joined.added_to(&self.file);
                self.arrange(config, &numbers, routes);
            }
            Err(error) => warn!("the workers that joined cannot be numbered: {error:#}"),
        }
    }
}
