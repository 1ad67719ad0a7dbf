//! What the screen shows and what keys do; it neither asks nor draws.

use std::{collections::VecDeque, time::Instant};

use lb_core::{AdminAction, AdminState, MANAGER, ServiceSnapshot};
use memlb::{
    control::{AdminReply, ClientError, Request},
    event_stream::EventRecord,
    status::{Backend, Status},
};
use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    widgets::TableState,
};

use super::rates::Rates;

/// How many events are kept for the screen.
const ENTRIES: usize = 200;

/// What a key asks of the world outside.
#[derive(Debug, PartialEq)]
pub enum UserAction {
    Leave,
    Order(Request),
}

#[derive(Debug, Default)]
pub struct App {
    pub status: Option<Status>,
    pub rates: Rates,
    /// The newest first.
    pub entries: VecDeque<EventRecord>,
    /// Why the manager does not answer.
    pub trouble: Option<String>,
    /// What became of the last order.
    pub note: Option<String>,
    /// An order that waits for its yes.
    pub asked: Option<(String, AdminAction)>,
    pub rows: TableState,
    service: usize,
}

impl App {
    pub fn update_status(&mut self, status: Status, now: Instant) {
        self.rates.update(&status, now);
        self.status = Some(status);
        self.trouble = None;
        let last = self.workers().saturating_sub(1);
        self.rows
            .select(Some(self.rows.selected().unwrap_or(0).min(last)));
    }

    pub fn set_disconnected(&mut self, why: String) {
        self.trouble = Some(why);
    }

    pub fn add_event(&mut self, entry: EventRecord) {
        self.entries.push_front(entry);
        self.entries.truncate(ENTRIES);
    }

    pub fn handle_reply(&mut self, answer: Result<AdminReply, ClientError>) {
        self.note = Some(match answer {
            Ok(ordered) => {
                let warnings = ordered
                    .without_worker
                    .iter()
                    .map(|service| format!("; {service} has no worker now"));
                ordered.order.clone() + &warnings.collect::<String>()
            }
            Err(error) => format!("refused: {error}"),
        });
    }

    /// Returns the service on the screen, its place, and how many there are.
    pub fn service(&self) -> Option<(&ServiceSnapshot<Backend>, usize, usize)> {
        let services = &self.status.as_ref()?.services;
        let place = self.service.min(services.len().checked_sub(1)?);
        Some((&services[place], place, services.len()))
    }

    pub fn handle_key(&mut self, key: KeyEvent) -> Option<UserAction> {
        let control_c = key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
        if control_c {
            return Some(UserAction::Leave);
        }
        if let Some((worker, action)) = self.asked.take() {
            return (key.code == KeyCode::Char('y')).then_some(UserAction::Order(Request::Order {
                worker,
                service: None,
                order: action,
                reason: None,
            }));
        }
        self.note = None;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(UserAction::Leave),
            KeyCode::Up | KeyCode::Char('k') => self.move_selection(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_selection(1),
            KeyCode::PageUp => self.move_selection(-10),
            KeyCode::PageDown => self.move_selection(10),
            KeyCode::Home => self.move_selection(isize::MIN),
            KeyCode::End => self.move_selection(isize::MAX),
            KeyCode::Left | KeyCode::BackTab => self.switch_service(-1),
            KeyCode::Right | KeyCode::Tab => self.switch_service(1),
            KeyCode::Char('d') => self.request_command(AdminAction::SetState {
                state: AdminState::Drain,
            }),
            KeyCode::Char('m') => self.request_command(AdminAction::SetState {
                state: AdminState::Maintenance,
            }),
            KeyCode::Char('u') => self.request_command(AdminAction::Undrain),
            _ => {}
        }
        None
    }

    fn workers(&self) -> usize {
        self.service()
            .map_or(0, |(service, ..)| service.backends.len())
    }

    fn move_selection(&mut self, by: isize) {
        let last = self.workers().saturating_sub(1);
        let from = self.rows.selected().unwrap_or(0);
        self.rows
            .select(Some(from.saturating_add_signed(by).min(last)));
    }

    fn switch_service(&mut self, by: isize) {
        if let Some((_, place, count)) = self.service() {
            self.service = (place + count).saturating_add_signed(by) % count;
            self.rows.select(Some(0));
        }
    }

    fn request_command(&mut self, action: AdminAction) {
        let Some((service, ..)) = self.service() else {
            return;
        };
        let backend = self
            .rows
            .selected()
            .and_then(|row| service.backends.get(row));
        match backend.map(|backend| backend.seen.name.clone()) {
            Some(name) if name == MANAGER => {
                self.note = Some("the manager itself cannot be held".to_owned());
            }
            Some(name) => self.asked = Some((name, action)),
            None => {}
        }
    }
}
