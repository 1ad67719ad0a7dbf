//! Why a datagram is not accepted as a heartbeat.

use thiserror::Error;

use super::{MAX_CLIENTS, MAX_TRANSLATED, SIZE_LIMIT, VERSION};
use crate::keys::KeyId;
use crate::worker_name::NameProblem;

/// The most characters of a parser's message, which may quote unauthenticated input.
const MAX_QUOTE_CHARACTERS: usize = 120;

/// Declares the reasons: the name of the counter, which never changes, and the text.
macro_rules! refusals {
    ($($(#[doc = $doc:literal])* $variant:ident $({ $($field:ident: $type:ty),+ })? = $name:literal, $text:literal;)+) => {
        /// The reasons, each with a stable name for counters.
        #[derive(Debug, Clone, PartialEq, Eq, Error)]
        pub enum Refusal {
            /// The worker's name is not allowed.
            #[error(transparent)]
            WorkerName(#[from] NameProblem),
            $(
                $(#[doc = $doc])*
                #[error($text)]
                $variant $({ $($field: $type),+ })?,
            )+
        }

        impl Refusal {
            /// Returns the name of the counter; it never changes.
            pub fn name(&self) -> &'static str {
                match self {
                    Self::WorkerName(NameProblem::Empty) => "empty_worker_name",
                    Self::WorkerName(NameProblem::Overlong { .. }) => "overlong_worker_name",
                    Self::WorkerName(NameProblem::BadCharacter { .. } | NameProblem::LeadingDot) => "bad_worker_name",
                    $(Self::$variant { .. } => $name,)+
                }
            }
        }
    };
}

refusals! {
    Empty = "empty", "the datagram is empty";
    Oversized { bytes: usize } = "oversized", "the datagram has {bytes} bytes, not under {SIZE_LIMIT}";
    NotJson = "not_json", "the datagram is not JSON";
    /// A JSON object without a version number.
    NoVersion = "no_version", "the datagram has no version number in \"memlb\"";
    OtherVersion { version: u64 } = "other_version",
        "the heartbeat has version {version}, and this memlb supports version {VERSION}";
    /// A field is missing or has the wrong type.
    Malformed { problem: String } = "malformed", "the heartbeat is malformed: {problem}";
    BadBoot = "bad_boot", "\"boot\" is not 16 hexadecimal digits";
    ZeroTotalMemory = "zero_total_memory", "the total memory is 0";
    ZeroMemoryLimit = "zero_memory_limit", "the cgroup's memory limit is 0";
    AvailableExceedsTotal { available_bytes: u64, total_bytes: u64 } = "available_exceeds_total",
        "more memory is available ({available_bytes} bytes) than there is ({total_bytes})";
    AbsurdInterval { interval_ms: u64 } = "absurd_interval",
        "the interval is {interval_ms} ms, not between 1 ms and one hour";
    AbsurdPause { pause_ms: u64 } = "absurd_pause",
        "the pause is {pause_ms} ms, not between one second and one hour";
    BadAgentVersion = "bad_agent_version", "\"version\" is not 1 to 32 visible ASCII characters";
    BadNonce = "bad_nonce", "\"nonce\" is not 16 hexadecimal digits";
    /// More services of mode `dsr` than a heartbeat may name.
    TooManyTranslated { services: usize } = "too_many_translated",
        "\"dsr\" names {services} services, not at most {MAX_TRANSLATED}";
    /// The line with the signature does not have its form.
    BadEnvelope = "bad_envelope",
        "the line before the heartbeat is not \"memlb1 KEY-ID TAG\" in 8 and 64 hexadecimal digits";
    /// It is unsigned, and signatures are required.
    Unsigned = "unsigned",
        "the heartbeat is not signed, and authentication = \"enforce\"; give the agent its --key";
    /// It is unsigned, while the same worker sends signed ones.
    UnsignedBesideSigned = "unsigned_beside_signed",
        "the heartbeat is not signed, while the same worker sends signed ones";
    UnknownKey { key: KeyId } = "unknown_key",
        "the heartbeat is signed with key {key}, which is not among the manager's keys";
    /// It was changed on its way, or its sender does not know the key's secret.
    BadSignature { key: KeyId } = "bad_signature",
        "the signature is wrong: the datagram was changed on its way, or not signed with key {key}";
    /// Signed with a valid key of another worker.
    OtherWorkersKey { key: KeyId, of: String } = "other_workers_key",
        "the heartbeat is signed with key {key} of {of}, but names another worker";
    /// The signature is valid, but nothing proves that the datagram is not a recording.
    NotFresh = "not_fresh",
        "the heartbeat does not prove that it is new; the manager has sent a nonce (normal at the start of an agent or of the manager)";
    /// A ping.
    Ping = "ping", "the datagram is a ping";
    /// A query about no client, or about too many.
    AbsurdClients { clients: usize } = "absurd_clients",
        "the query names {clients} clients, not 1 to {MAX_CLIENTS}";
    /// A reply to no query, or to one that has expired.
    Unsolicited = "unsolicited", "the reply belongs to no query of the last second";
    /// A query that does not name one of the agent's last heartbeats.
    OldQuery = "old_query", "the query names none of this agent's last heartbeats";
    /// Too many datagrams of its source were refused. It was not processed.
    RateLimited = "rate_limited", "too many datagrams of its source were refused, so that it was not processed";
    /// The 2018 format, which is not enabled.
    LegacyOff = "legacy_off", "the datagram is in the 2018 format, which only legacy_heartbeats = true accepts";
    /// A list in the 2018 formatat must have exactly one worker.
    LegacyLength { length: usize } = "legacy_length", "the list in the 2018 format has {length} entries, not one";
    AbsurdFreeMemory = "absurd_free_memory", "\"freeMemory\" is not a plausible number of MiB";
}

/// Distinguishes text that is not JSON from JSON with another structure.
impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        if !error.is_data() {
            return Self::NotJson;
        }
        let problem = error.to_string();
        let printable = problem.chars().flat_map(char::escape_debug);
        Self::Malformed {
            problem: printable.take(MAX_QUOTE_CHARACTERS).collect(),
        }
    }
}
