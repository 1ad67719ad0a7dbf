//! `memlb top`: services, workers and events on one screen, and keys to hold workers.

mod app;
mod bar;
mod columns;
mod order;
#[cfg(test)]
mod picture;
mod rates;
#[cfg(test)]
pub(super) mod tests;
mod view;

use std::{io::IsTerminal, thread, time::Duration};

use anyhow::{Context, ensure};
use memlb::{
    control::{AdminReply, ClientError, ControlClient, DISCONNECTED, Request, parse_reply},
    event_filter::EventFilter,
    event_stream::EventRecord,
};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEvent, KeyEventKind},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

use self::app::{App, UserAction};
use super::{error::CliResult, remote::ControlSocket, runtime::block_on, terminal::Output};

/// The interval of requests for the status, and of attempts to reconnect.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Show services, workers, traffic and events live on the whole terminal
///
/// Workers in trouble come first. Keys: ? for help, arrows to move, s to sort, / to search, d to drain a
/// worker, m for maintenance, u to end either, q to quit. Orders need a confirmation.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: ControlSocket,
}

pub fn run(args: &Args) -> CliResult {
    ensure_terminal()?;
    let client = args.socket.client();
    // An unreachable manager is reported before the screen is cleared.
    block_on(client.request::<memlb::status::Status>(&Request::Status))?;
    let mut terminal = ratatui::init();
    let ended = block_on(watch(&mut terminal, &client));
    ratatui::restore();
    Ok(ended?)
}

fn ensure_terminal() -> anyhow::Result<()> {
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "memlb top needs a terminal; `memlb status` prints the same once, with --json for programs"
    );
    Ok(())
}

async fn watch(terminal: &mut DefaultTerminal, client: &ControlClient) -> anyhow::Result<()> {
    let mut app = App::new(Output::stdout().has_color);
    let mut keys = keys();
    let mut events = events(client.clone());
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut ticks = interval(REFRESH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = ticks.tick() => refresh(&mut app, client).await,
            Some(event) = events.recv() => {
                app.add_event(event);
                // An event is shown at once; one refresh covers several.
                while let Ok(event) = events.try_recv() {
                    app.add_event(event);
                }
                refresh(&mut app, client).await;
            }
            key = keys.recv() => match key {
                // Other events of the terminal, such as a resize, also need a redraw.
                Some(None) => {}
                Some(Some(key)) => match app.handle_key(key) {
                    Some(UserAction::Leave) => return Ok(()),
                    Some(UserAction::Order(request)) => {
                        app.handle_reply(client.request::<AdminReply>(&request).await);
                        refresh(&mut app, client).await;
                    }
                    None => {}
                },
                None => return Ok(()),
            },
        }
        terminal
            .draw(|frame| view::draw(frame, &mut app))
            .context("draw the screen")?;
    }
}

async fn refresh(app: &mut App, client: &ControlClient) {
    match client.request(&Request::Status).await {
        Ok(status) => app.update_status(status, std::time::Instant::now()),
        Err(error) => app.set_disconnected(error.to_string()),
    }
}

/// Reads events of the terminal on a thread of its own; `None` is an event that is not a key.
fn keys() -> mpsc::UnboundedReceiver<Option<KeyEvent>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind == KeyEventKind::Press => Some(key),
                _ => None,
            };
            if sender.send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Receives the manager's events, and reconnects after an error.
fn events(client: ControlClient) -> mpsc::Receiver<EventRecord> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut last = 0;
        while !sender.is_closed() {
            // `refresh` reports the error.
            if stream_events(&client, &sender, &mut last).await.is_err() {
                sleep(REFRESH_INTERVAL).await;
            }
        }
    });
    receiver
}

async fn stream_events(
    client: &ControlClient,
    sender: &mpsc::Sender<EventRecord>,
    last: &mut u64,
) -> Result<(), ClientError> {
    let request = Request::Events {
        limit: None,
        follow: true,
        filter: EventFilter::default(),
    };
    let mut lines = client.stream(&request).await?;
    while let Some(line) = lines.next_line().await.context("wait for events")? {
        let entry: EventRecord = parse_reply(&line)?;
        if entry.id > *last {
            *last = entry.id;
            sender.send(entry).await.context("the screen is gone")?;
        }
    }
    Err(anyhow::anyhow!(DISCONNECTED).into())
}
