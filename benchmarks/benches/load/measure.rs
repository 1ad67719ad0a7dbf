//! The measurement of one scenario with one balancer.

use std::{sync::atomic::AtomicBool, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use memlb_tests::{
    load::{Ending, Flood, Load, Sources, Tally, hold_twice, open_at_rate, repeated_syns},
    notice::print_message,
};

use crate::{
    laboratory::{Balancer, Laboratory},
    scenario::{CLIENTS_IN_FLOOD, Kind, ROUND_TRIP, Scenario},
};

/// The results of a scenario with a balancer, in all rounds.
#[derive(Debug)]
pub struct Measured {
    pub scenario: Scenario,
    pub balancer: Balancer,
    pub first: Tally,
    /// The same number of connections once more, right after the first were reset.
    pub again: Option<Tally>,
    /// By the client and by the balancer's own stack.
    pub repeated_syns: u64,
    pub ports_exhausted: Option<u64>,
    /// How many SYNs a second a flood has sent, in the last round.
    pub flood_per_second: Option<f64>,
    /// For how long connections were opened, in all rounds.
    pub opening: Duration,
}

impl Measured {
    pub fn of(scenario: Scenario, balancer: Balancer) -> Self {
        Self {
            scenario,
            balancer,
            first: Tally::default(),
            again: None,
            repeated_syns: 0,
            ports_exhausted: None,
            flood_per_second: None,
            opening: Duration::ZERO,
        }
    }

    /// Measures once more, in a laboratory that nothing has been measured in.
    pub fn measure(&mut self, laboratory: &Laboratory, stop: &AtomicBool) -> Result<()> {
        let topology = laboratory.topology();
        let client = &topology.client;
        let load_of = |sources, ending| Load {
            targets: &laboratory.targets,
            sources,
            ending,
            stop,
        };
        let load = |ending| load_of(self.scenario.sources, ending);
        match self.scenario.kind {
            Kind::Rate {
                per_second,
                seconds,
                ending,
            } => {
                let opening = Duration::from_secs(seconds);
                let attack = |rate| {
                    let load = load_of(Sources::One, Ending::ClientResetAtOnce);
                    open_at_rate(client, load, rate, opening)
                };
                let tally = thread::scope(|scope| {
                    let attacker = self.scenario.attacker_per_second;
                    let attacker = attacker.map(|rate| scope.spawn(move || attack(rate)));
                    let tally = open_at_rate(client, load(ending), per_second, opening);
                    if let Some(attacker) = attacker {
                        let attack = attacker
                            .join()
                            .map_err(|_| anyhow!("the attacker panicked"))??;
                        let rate = attack.attempts as f64 / opening.as_secs_f64();
                        print_message(format_args!("the attacker opened {rate:.0} connections/s"));
                    }
                    tally
                })?;
                self.first.add(tally);
                self.opening += opening;
            }
            Kind::AtOnce { connections } => {
                let load = load(Ending::ClientReset);
                let [first, again] = hold_twice(client, load, connections)?;
                self.first.add(first);
                self.again.get_or_insert_default().add(again);
            }
            Kind::Flood {
                syns_per_second,
                is_aimed,
                seconds,
            } => {
                let flood = Flood {
                    server: *laboratory.targets.first().context("there is a target")?,
                    syns_per_second,
                    is_aimed,
                    clients_per_second: CLIENTS_IN_FLOOD,
                    duration: Duration::from_secs(seconds),
                    round_trip: ROUND_TRIP,
                    stop,
                };
                let attacker = laboratory.attacker.as_ref();
                let attacker = attacker.context("there is an attacker")?;
                let (tally, per_second) = flood.run(client, attacker)?;
                self.first.add(tally);
                self.flood_per_second = Some(per_second);
            }
        }
        for node in [client, &topology.manager] {
            self.repeated_syns += repeated_syns(node)?;
        }
        if let Some(exhausted) = laboratory.ports_exhausted()? {
            *self.ports_exhausted.get_or_insert_default() += exhausted;
        }
        Ok(())
    }
}
