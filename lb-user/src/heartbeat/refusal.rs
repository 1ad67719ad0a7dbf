//! Why a datagram is not accepted as a heartbeat.

use std::fmt;

use super::{MAX_TRANSLATED, SIZE_LIMIT, VERSION};
use crate::keys::KeyId;
use crate::worker_name::NameProblem;

/// The most characters of a parser's message: it may quote unauthenticated input.
const QUOTE_LIMIT: usize = 120;

/// The reasons, each with a stable name for counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Empty,
    Oversized {
        bytes: usize,
    },
    NotJson,
    /// A JSON object without a version number.
    NoVersion,
    OtherVersion {
        version: u64,
    },
    /// A field is missing or has the wrong type.
    Malformed {
        problem: String,
    },
    EmptyWorkerName,
    OverlongWorkerName {
        bytes: usize,
    },
    BadWorkerName {
        character: char,
    },
    BadBoot,
    ZeroTotalMemory,
    ZeroMemoryLimit,
    AvailableExceedsTotal {
        available_bytes: u64,
        total_bytes: u64,
    },
    AbsurdInterval {
        interval_ms: u64,
    },
    AbsurdPause {
        pause_ms: u64,
    },
    BadAgentVersion,
    BadNonce,
    /// More services of mode `dsr` than a heartbeat may name.
    TooManyTranslated {
        services: usize,
    },
    /// The line with the signature does not have its form.
    BadEnvelope,
    /// It is unsigned, and signatures are required.
    Unsigned,
    /// It is unsigned, while the same worker sends signed ones.
    UnsignedBesideSigned,
    UnknownKey {
        key: KeyId,
    },
    /// It was changed on its way, or its sender knows only the key's id.
    BadSignature {
        key: KeyId,
    },
    /// Signed with a valid key of another worker.
    OtherWorkersKey {
        key: KeyId,
        of: String,
    },
    /// The signature is valid, but without proof that it is not a recording.
    NotFresh,
    /// A ping.
    Ping,
    /// Too many datagrams of its source were refused; it was not processed.
    RateLimited,
    /// The 2018 format, which is not enabled.
    LegacyOff,
    /// A list in the 2018 format must have exactly one worker.
    LegacyLength {
        length: usize,
    },
    AbsurdFreeMemory,
}

impl Refusal {
    /// Returns the name of the counter; it never changes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Oversized { .. } => "oversized",
            Self::NotJson => "not_json",
            Self::NoVersion => "no_version",
            Self::OtherVersion { .. } => "other_version",
            Self::Malformed { .. } => "malformed",
            Self::EmptyWorkerName => "empty_worker_name",
            Self::OverlongWorkerName { .. } => "overlong_worker_name",
            Self::BadWorkerName { .. } => "bad_worker_name",
            Self::BadBoot => "bad_boot",
            Self::ZeroTotalMemory => "zero_total_memory",
            Self::ZeroMemoryLimit => "zero_memory_limit",
            Self::AvailableExceedsTotal { .. } => "available_exceeds_total",
            Self::AbsurdInterval { .. } => "absurd_interval",
            Self::AbsurdPause { .. } => "absurd_pause",
            Self::BadAgentVersion => "bad_agent_version",
            Self::BadNonce => "bad_nonce",
            Self::TooManyTranslated { .. } => "too_many_translated",
            Self::BadEnvelope => "bad_envelope",
            Self::Unsigned => "unsigned",
            Self::UnsignedBesideSigned => "unsigned_beside_signed",
            Self::UnknownKey { .. } => "unknown_key",
            Self::BadSignature { .. } => "bad_signature",
            Self::OtherWorkersKey { .. } => "other_workers_key",
            Self::NotFresh => "not_fresh",
            Self::Ping => "ping",
            Self::RateLimited => "rate_limited",
            Self::LegacyOff => "legacy_off",
            Self::LegacyLength { .. } => "legacy_length",
            Self::AbsurdFreeMemory => "absurd_free_memory",
        }
    }

    /// Classifies a parser's error: no JSON, or JSON with another structure.
    pub(super) fn of_parser(error: &serde_json::Error) -> Self {
        if !error.is_data() {
            return Self::NotJson;
        }
        let problem = error.to_string();
        let printable = problem.chars().flat_map(char::escape_debug);
        Self::Malformed {
            problem: printable.take(QUOTE_LIMIT).collect(),
        }
    }
}

impl From<NameProblem> for Refusal {
    fn from(problem: NameProblem) -> Self {
        match problem {
            NameProblem::Empty => Self::EmptyWorkerName,
            NameProblem::Overlong { bytes } => Self::OverlongWorkerName { bytes },
            NameProblem::BadCharacter { character } => Self::BadWorkerName { character },
            NameProblem::LeadingDot => Self::BadWorkerName { character: '.' },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the datagram is empty"),
            Self::Oversized { bytes } => {
                write!(f, "the datagram has {bytes} bytes, not under {SIZE_LIMIT}")
            }
            Self::NotJson => f.write_str("the datagram is not JSON"),
            Self::NoVersion => f.write_str("the datagram has no version number in \"memlb\""),
            Self::OtherVersion { version } => write!(
                f,
                "the heartbeat is of version {version}, this manager understands version {VERSION}"
            ),
            Self::Malformed { problem } => write!(f, "the heartbeat is malformed: {problem}"),
            Self::EmptyWorkerName => NameProblem::Empty.fmt(f),
            Self::OverlongWorkerName { bytes } => NameProblem::Overlong { bytes: *bytes }.fmt(f),
            // A dot is allowed elsewhere in a name.
            Self::BadWorkerName { character: '.' } => NameProblem::LeadingDot.fmt(f),
            Self::BadWorkerName { character } => NameProblem::BadCharacter {
                character: *character,
            }
            .fmt(f),
            Self::BadBoot => f.write_str("\"boot\" is not 16 hexadecimal digits"),
            Self::ZeroTotalMemory => f.write_str("the total memory is 0"),
            Self::ZeroMemoryLimit => f.write_str("the cgroup's memory limit is 0"),
            Self::AvailableExceedsTotal {
                available_bytes,
                total_bytes,
            } => write!(
                f,
                "more memory is available ({available_bytes} bytes) than there is ({total_bytes})"
            ),
            Self::AbsurdInterval { interval_ms } => write!(
                f,
                "the interval is {interval_ms} ms, not between 1 ms and one hour"
            ),
            Self::AbsurdPause { pause_ms } => write!(
                f,
                "the pause is {pause_ms} ms, not between one second and one hour"
            ),
            Self::BadAgentVersion => {
                f.write_str("\"version\" is not 1 to 32 visible ASCII characters")
            }
            Self::BadNonce => f.write_str("\"nonce\" is not 16 hexadecimal digits"),
            Self::TooManyTranslated { services } => write!(
                f,
                "\"dsr\" names {services} services, not at most {MAX_TRANSLATED}"
            ),
            Self::BadEnvelope => f.write_str(
                "the line before the heartbeat is not \"memlb1 KEY-ID TAG\" in 8 and 64 hexadecimal \
                 digits",
            ),
            Self::Unsigned => f.write_str(
                "the heartbeat is not signed, and authentication = \"enforce\"; give the agent its \
                 --key",
            ),
            Self::UnsignedBesideSigned => f.write_str(
                "the heartbeat is not signed, while the same worker sends signed ones",
            ),
            Self::UnknownKey { key } => write!(
                f,
                "the heartbeat is signed with key {key}, which is not among the manager's keys"
            ),
            Self::BadSignature { key } => write!(
                f,
                "the signature is wrong: changed on its way, or not made with key {key}"
            ),
            Self::OtherWorkersKey { key, of } => write!(
                f,
                "the heartbeat is signed with key {key} of {of}, but names another worker"
            ),
            Self::NotFresh => f.write_str(
                "the heartbeat does not prove that it is new; the manager has sent a nonce (usual at the \
                 start of an agent or of the manager)",
            ),
            Self::Ping => f.write_str("the datagram is a ping"),
            Self::RateLimited => f.write_str(
                "too many datagrams of its source were refused; it is ignored for now",
            ),
            Self::LegacyOff => f.write_str(
                "the datagram is in the 2018 form, which legacy_heartbeats = true would accept",
            ),
            Self::LegacyLength { length } => {
                write!(f, "the list in the 2018 form has {length} entries, not one")
            }
            Self::AbsurdFreeMemory => {
                f.write_str("\"freeMemory\" is not a believable number of MiB")
            }
        }
    }
}

impl std::error::Error for Refusal {}
