//! How the core carries the operator's orders out.

use std::time::Instant;

use super::order::{Action, MOST_WEIGHT_PERCENT, Order, OrderError, Orders};
use super::service::Target;
use super::{Core, Event, Hold};

/// What an order has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obeyed {
    /// The services that have no worker for new connections now.
    pub without_worker: Vec<String>,
}

impl Core {
    /// Carries out an operator's order, at once and for good: it stands until it is taken back.
    ///
    /// # Errors
    ///
    /// Says whom or what there is not, and changes nothing then.
    pub fn handle_order(&mut self, order: &Order, now: Instant) -> Result<Obeyed, OrderError> {
        self.wake(now);
        let index = self.target(order)?;
        self.orders.take(order)?;
        self.events.push_back(Event::OperatorOrder {
            order: order.clone(),
        });
        self.overlay(index);
        self.settle(&[index], now);
        let served = self.workers[index].places.iter().map(|it| it.service);
        let deserted = served.filter(|service| self.services[*service].target == Target::Fallback);
        let mut without_worker: Vec<String> = deserted
            .map(|service| self.services[service].settings.name.clone())
            .collect();
        without_worker.dedup();
        Ok(Obeyed { without_worker })
    }

    /// Returns the standing orders, to be kept for the next manager.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Tells a worker's services what is ordered of it there.
    pub(super) fn overlay(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.in_maintenance = !worker.places.is_empty();
        for place in &worker.places {
            let service = &mut self.services[place.service];
            let overlay = self.orders.overlay(&worker.name, &service.settings.name);
            worker.in_maintenance &= overlay.held().is_some_and(|hold| hold >= Hold::Maintenance);
            service.lay_over(place.backend, overlay);
        }
    }

    fn target(&self, order: &Order) -> Result<usize, OrderError> {
        if let Action::Weight { percent } = order.action
            && percent > MOST_WEIGHT_PERCENT
        {
            return Err(OrderError::WeightTooLarge { percent });
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
