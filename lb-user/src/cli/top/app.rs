//! The state of the screen, and the effect of keys. Requests and drawing are elsewhere.

use std::{collections::VecDeque, time::Instant};

use lb_core::{AdminAction, AdminState, BackendId, MANAGER};
use memlb::{
    control::{AdminReply, ClientError, Request},
    event_stream::EventRecord,
    status::{BackendStatus, ServiceStatus, Status},
};
use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    widgets::TableState,
};

use super::{order::Order, rates::Rates};

/// The number of events that are kept for the screen.
const MAX_EVENTS: usize = 200;

/// The result of a key that the application itself does not handle.
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
    /// The result of the last order.
    pub note: Option<String>,
    /// The order that waits for a confirmation.
    pub unconfirmed: Option<(String, AdminAction)>,
    pub has_color: bool,
    /// The cursor in the rows that are shown.
    pub rows: TableState,
    pub order: Order,
    pub is_reversed: bool,
    /// Only workers whose name, address or state contains it are shown.
    pub search: String,
    /// Whether keys edit the search.
    pub is_searching: bool,
    pub shows_help: bool,
    /// The worker under the cursor, which the cursor follows when the order changes. `None` until the cursor is moved.
    pointed: Option<BackendId>,
    service: usize,
}

impl App {
    pub fn new(has_color: bool) -> Self {
        Self {
            has_color,
            ..Self::default()
        }
    }

    pub fn update_status(&mut self, status: Status, now: Instant) {
        self.rates.update(&status, now);
        self.status = Some(status);
        self.trouble = None;
        self.restore_cursor();
    }

    pub fn set_disconnected(&mut self, why: String) {
        self.trouble = Some(why);
    }

    pub fn add_event(&mut self, entry: EventRecord) {
        self.entries.push_front(entry);
        self.entries.truncate(MAX_EVENTS);
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

    /// Returns the service on the screen, its index, and the number of services.
    pub fn service(&self) -> Option<(&ServiceStatus, usize, usize)> {
        let services = &self.status.as_ref()?.services;
        let place = self.service.min(services.len().checked_sub(1)?);
        Some((&services[place], place, services.len()))
    }

    /// Returns the backends on the screen, in their order.
    pub fn shown(&self) -> Vec<&BackendStatus> {
        let Some((service, ..)) = self.service() else {
            return Vec::new();
        };
        let backends = &service.backends;
        let places = self.order.places(backends, &self.rates, &self.search);
        let mut shown: Vec<&BackendStatus> = places.iter().map(|it| &backends[*it]).collect();
        if self.is_reversed {
            shown.reverse();
        }
        shown
    }

    /// Returns the backend that the cursor is on.
    pub fn pointed(&self) -> Option<&BackendStatus> {
        self.shown().get(self.rows.selected()?).copied()
    }

    pub fn handle_key(&mut self, key: KeyEvent) -> Option<UserAction> {
        let control_c = key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
        if control_c {
            return Some(UserAction::Leave);
        }
        if let Some((worker, action)) = self.unconfirmed.take() {
            return (key.code == KeyCode::Char('y')).then_some(UserAction::Order(Request::Order {
                worker,
                service: None,
                order: action,
                reason: None,
            }));
        }
        self.note = None;
        if self.is_searching {
            self.handle_search_key(key.code);
            return None;
        }
        if std::mem::take(&mut self.shows_help) {
            return None;
        }
        self.handle_command_key(key.code)
    }

    fn handle_search_key(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(character) => self.search.push(character),
            KeyCode::Backspace => {
                self.search.pop();
            }
            KeyCode::Enter => self.is_searching = false,
            KeyCode::Esc => self.end_search(),
            _ => {}
        }
        self.pointed = None;
        self.restore_cursor();
    }

    fn end_search(&mut self) {
        self.search.clear();
        self.is_searching = false;
        self.restore_cursor();
    }

    fn handle_command_key(&mut self, key: KeyCode) -> Option<UserAction> {
        match key {
            KeyCode::Esc if !self.search.is_empty() => self.end_search(),
            KeyCode::Char('q') | KeyCode::Esc => return Some(UserAction::Leave),
            KeyCode::Up | KeyCode::Char('k') => self.move_selection(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_selection(1),
            KeyCode::PageUp => self.move_selection(-10),
            KeyCode::PageDown => self.move_selection(10),
            KeyCode::Home => self.move_selection(isize::MIN),
            KeyCode::End => self.move_selection(isize::MAX),
            KeyCode::Left | KeyCode::BackTab => self.switch_service(-1),
            KeyCode::Right | KeyCode::Tab => self.switch_service(1),
            KeyCode::Char('?' | 'h') => self.shows_help = true,
            KeyCode::Char('/') => {
                self.search.clear();
                self.is_searching = true;
            }
            KeyCode::Char('s') => {
                self.order = self.order.next();
                self.restore_cursor();
            }
            KeyCode::Char('r') => {
                self.is_reversed = !self.is_reversed;
                self.restore_cursor();
            }
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

    fn move_selection(&mut self, by: isize) {
        let shown = self.shown();
        let from = self.rows.selected().unwrap_or(0);
        let last = shown.len().saturating_sub(1);
        let place = from.saturating_add_signed(by).min(last);
        self.pointed = shown.get(place).map(|it| it.seen.backend_id);
        self.rows.select(Some(place));
    }

    /// Moves the cursor to the worker that it was on, else to the row that it was in.
    fn restore_cursor(&mut self) {
        let shown = self.shown();
        let last = shown.len().saturating_sub(1);
        let place = match self.pointed {
            None => 0,
            Some(id) => (shown.iter().position(|it| it.seen.backend_id == id))
                .unwrap_or_else(|| self.rows.selected().unwrap_or(0).min(last)),
        };
        self.rows.select(Some(place));
    }

    fn switch_service(&mut self, by: isize) {
        if let Some((_, place, count)) = self.service() {
            self.service = (place + count).saturating_add_signed(by) % count;
            self.pointed = None;
            self.restore_cursor();
        }
    }

    fn request_command(&mut self, action: AdminAction) {
        let pointed = self.pointed().map(|backend| &backend.seen);
        match pointed.map(|seen| (seen.name.clone(), seen.backend_id)) {
            Some((name, _)) if name == MANAGER => {
                self.note = Some("the fallback cannot be drained".to_owned());
            }
            Some((name, id)) => {
                self.pointed = Some(id);
                self.unconfirmed = Some((name, action));
            }
            None => {}
        }
    }
}
