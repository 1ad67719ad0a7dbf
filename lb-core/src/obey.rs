//! How the core carries the operator's orders out.

use std::collections::BTreeSet;
use std::time::Instant;

use super::order::{Action, MOST_WEIGHT_PERCENT, Order, OrderError, Orders, check_reason};
use super::pause::check_pause;
use super::reason::helped;
use super::service::Target;
use super::{Core, Event, Health, Hold};

/// What an order has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obeyed {
    /// The services that have no worker for new connections now.
    pub without_worker: Vec<String>,
    /// What the operator may not have meant, one sentence each.
    pub mind: Vec<String>,
}

impl Core {
    /// Carries out an operator's order, at once and for good: it stands until it is taken back.
    ///
    /// # Errors
    ///
    /// Says whom or what there is not, and changes nothing then.
    pub fn handle_order(&mut self, order: &Order, now: Instant) -> Result<Obeyed, OrderError> {
        self.wake(now);
        let index = match self.target(order) {
            Ok(index) => Some(index),
            // Its worker, or the service, is no longer configured.
            Err(_) if self.orders.are_taken_back_by(order) => None,
            Err(error) => return Err(error),
        };
        let before = self.orders.standing();
        self.orders.take(order)?;
        self.events.push_back(Event::OperatorOrder {
            order: order.clone(),
        });
        match order.action {
            Action::Pause { for_ms } => self.set_pause(&order.worker, Some(for_ms), now),
            Action::Resume => self.set_pause(&order.worker, None, now),
            _ => {}
        }
        let mut obeyed = Obeyed::default();
        if !order.action.takes_back() {
            let replaced = self.orders.missing_of(before);
            let mind = replaced.map(|before| format!("this replaces an earlier order: {before}"));
            obeyed.mind.extend(mind);
        }
        match index {
            Some(index) => {
                let was_paused = self.workers[index].paused_until.is_some();
                self.overlay(index);
                if was_paused && order.action == Action::Resume {
                    self.alarm_after_pause(index, now);
                }
                self.settle(&[index], now);
                obeyed.mind.extend(self.lost_before(index, order.action));
                self.tell_deserted(index, &mut obeyed);
            }
            None => obeyed
                .mind
                .push(format!("no service has {} there", order.worker)),
        }
        Ok(obeyed)
    }

    /// Says which of a worker's services have no worker now, and what becomes of their clients.
    fn tell_deserted(&self, worker: usize, obeyed: &mut Obeyed) {
        let served: BTreeSet<usize> = self.workers[worker]
            .places
            .iter()
            .map(|it| it.service)
            .collect();
        let served = served.iter().map(|service| &self.services[*service]);
        for service in served.filter(|service| service.target == Target::Fallback) {
            let (name, fallback) = (&service.settings.name, service.fallback_name());
            obeyed.without_worker.push(name.clone());
            let fallback = helped(fallback);
            obeyed
                .mind
                .push(format!("{name} has no worker now: {fallback}"));
        }
    }

    /// Says that a pause comes too late for the connections that met a worker's silence.
    fn lost_before(&self, worker: usize, action: Action) -> Option<String> {
        let worker = &self.workers[worker];
        let is_late = matches!(action, Action::Pause { .. }) && worker.health == Health::Down;
        is_late.then(|| {
            format!(
                "{0} is down already: connections of {0} that have sent since then are reset",
                worker.name
            )
        })
    }

    /// Returns the standing orders, to be kept for the next manager.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Tells a worker's services what is ordered of it there.
    pub(super) fn overlay(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.paused_until = self.pauses.get(&worker.name).map(|pause| pause.until);
        worker.in_maintenance = !worker.places.is_empty();
        for place in &worker.places {
            let service = &mut self.services[place.service];
            let overlay = self.orders.overlay(&worker.name, &service.settings.name);
            worker.in_maintenance &= overlay.held().is_some_and(|hold| hold >= Hold::Maintenance);
            service.lay_over(place.backend, overlay);
        }
    }

    fn target(&self, order: &Order) -> Result<usize, OrderError> {
        order.reason.as_deref().map_or(Ok(()), check_reason)?;
        if let Action::Weight { percent } = order.action
            && percent > MOST_WEIGHT_PERCENT
        {
            return Err(OrderError::WeightTooLarge { percent });
        }
        if let Action::Pause { for_ms } = order.action {
            check_pause(for_ms)?;
            if order.service.is_some() {
                return Err(OrderError::PauseOfOneService);
            }
        }
        let Some(&index) = self.by_name.get(&order.worker) else {
            return Err(OrderError::UnknownWorker {
                worker: order.worker.clone(),
                known: self.by_name.keys().cloned().collect(),
            });
        };
        let Some(wanted) = &order.service else {
            return Ok(index);
        };
        let names = || self.services.iter().map(|it| it.settings.name.clone());
        if !names().any(|name| name == *wanted) {
            return Err(OrderError::UnknownService {
                service: wanted.clone(),
                known: names().collect(),
            });
        }
        let places = self.workers[index].places.iter();
        let services: Vec<String> = places
            .map(|it| self.services[it.service].settings.name.clone())
            .collect();
        if !services.contains(wanted) {
            return Err(OrderError::NotInService {
                worker: order.worker.clone(),
                service: wanted.clone(),
                services,
            });
        }
        Ok(index)
    }
}
