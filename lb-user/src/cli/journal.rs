//! Sends the log to systemd's journal by its native protocol, with severity and fields.
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    os::unix::net::UnixDatagram,
    path::Path,
};

use tracing::{Event, Level, Metadata, Subscriber, field};
use tracing_subscriber::{Layer, layer::Context};

pub const SOCKET: &str = "/run/systemd/journal/socket";

/// The field that holds an event of the manager as JSON.
pub const EVENT_FIELD: &str = "event";

/// Sends each line of the log to the journal.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// # Errors
    ///
    /// Returns the kernel's error, for instance where no journal listens at `socket`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let connected = UnixDatagram::unbound()?;
        connected.connect(socket)?;
        Ok(Self(connected))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = JournalEntry::new(event.metadata());
        event.record(&mut entry);
        let datagram = entry.finish();
        if self.0.send(&datagram).is_err() {
            // The journal restarts, or the entry is too large for a datagram. The journal also reads standard output.
            let line = entry.line();
            _ = io::stdout().write_all(line.as_bytes());
        }
    }
}

/// An entry of the journal.
struct JournalEntry {
    priority: u8,
    message: String,
    fields: Vec<(String, String)>,
}

impl JournalEntry {
    fn new(metadata: &Metadata<'_>) -> Self {
        Self {
            priority: match *metadata.level() {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                _ => 7,
            },
            message: String::new(),
            fields: Vec::new(),
        }
    }

    fn finish(&mut self) -> Vec<u8> {
        let mut datagram = Vec::new();
        let own = [
            ("MESSAGE".to_owned(), self.message.clone()),
            ("PRIORITY".to_owned(), self.priority.to_string()),
            ("SYSLOG_IDENTIFIER".to_owned(), "memlb".to_owned()),
        ];
        for (name, value) in own.iter().chain(&self.fields) {
            datagram.extend_from_slice(name.as_bytes());
            match value.contains('\n') {
                false => datagram.push(b'='),
                true => {
                    datagram.push(b'\n');
                    datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
                }
            }
            datagram.extend_from_slice(value.as_bytes());
            datagram.push(b'\n');
        }
        datagram
    }

    /// The entry as a line of standard output, with its severity (sd-daemon(3)).
    fn line(&self) -> String {
        let message = self.message.replace('\n', " ");
        format!("<{}>{message}\n", self.priority)
    }

    fn record(&mut self, name: &str, value: String) {
        match name {
            "message" => self.message.insert_str(0, &value),
            EVENT_FIELD => self.fields.extend(event_fields(&value)),
            _ => _ = write!(self.message, " {name}={value}"),
        }
    }
}

impl field::Visit for JournalEntry {
    fn record_str(&mut self, field: &field::Field, value: &str) {
        self.record(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        self.record(field.name(), format!("{value:?}"));
    }
}

/// Returns the members of an event as fields: `MEMLB_EVENT=worker_down`, `MEMLB_WORKER=worker1`, …
fn event_fields(json: &str) -> Vec<(String, String)> {
    let members: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(json).unwrap_or_default();
    let field = |(name, value): (String, serde_json::Value)| {
        let value = match value {
            serde_json::Value::Null => return None,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        Some((format!("MEMLB_{}", name.to_uppercase()), value))
    };
    members.into_iter().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn journal_entry_has_severity_text_and_fields() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::connect(&path).unwrap());
        let event = r#"{"event":"worker_down","worker":"worker1","silent_ms":1500,"memory":null}"#;
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(event, "worker1 is down");
            tracing::info!(more = 1, "two\nlines");
        });
        let mut received = [0; 4096];
        let length = journal.recv(&mut received).unwrap();
        let text = String::from_utf8_lossy(&received[..length]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "MESSAGE=worker1 is down",
                "PRIORITY=4",
                "SYSLOG_IDENTIFIER=memlb",
                "MEMLB_EVENT=worker_down",
                "MEMLB_SILENT_MS=1500",
                "MEMLB_WORKER=worker1",
            ]
        );
        let length = journal.recv(&mut received).unwrap();
        let expected = b"MESSAGE\n\x10\0\0\0\0\0\0\0two\nlines more=1\nPRIORITY=6\n";
        assert_eq!(received[..length][..expected.len()], expected[..]);
    }
}
