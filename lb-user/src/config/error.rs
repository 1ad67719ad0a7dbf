//! The problems of a configuration: what is wrong, where, what was expected and what to do.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use thiserror::Error;

use crate::encoding::NotUtf8;

/// Every problem that was found, in the order of the checks; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Error)]
#[error("{}", .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    #[serde(flatten)]
    pub origin: Origin,
    /// The key, as `table.key`; empty if the text is not TOML.
    pub key: String,
    pub what: String,
    pub expected: String,
    pub remedy: String,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Origin {
    /// A file, at a line counted from 1.
    Line { file: String, line: usize },
    /// A file that does not give the value.
    File { file: String },
    /// An option of the command line.
    Flag { option: &'static str },
    /// A setting given with `--set`.
    Set { set: String },
}

/// The kinds of problems, each with its own message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    Unreadable,
    NotUtf8,
    Syntax,
    UnknownKey,
    WrongType,
    Missing,
    BadAddress,
    BadDuration,
    BadThreshold,
    BadPercent,
    BadPortRange,
    OutOfRange,
    UnknownChoice,
    NotSupportedYet,
    BadInterface,
    BadNatSource,
    BadPath,
    BadName,
    NoInterface,
    NoService,
    NoWorker,
    DuplicateServiceName,
    DuplicateServiceAddress,
    DuplicateWorkerName,
    DuplicateBackendAddress,
    DuplicateInterface,
    ZeroInterval,
    LegacyUnsigned,
    AutoJoinUnauthenticated,
    DsrNeedsAgent,
    BadNetwork,
    FamiliesMixed,
    DownAfterTooShort,
    IdleTimesReversed,
    FailingPausesReversed,
    NatPortsReversed,
    NatPortsPrivileged,
    NatPortsOverlapKernel,
    FallbackIsService,
    FallbackElsewhere,
    ManagersOwnAddress,
    WorkerOnManager,
    SharedEndpoint,
    TooManyBackends,
    TooManyServices,
    PeerWithoutListen,
    PeerListenMoves,
    PeerIsThisManager,
    PeersWithoutNatSources,
    DuplicatePeer,
    TooManyPeers,
}

impl ProblemKind {
    /// Whether a line that is not TOML can cause it elsewhere, because the value on that line is missing.
    pub(super) fn may_follow_from_syntax(self) -> bool {
        use ProblemKind as Kind;
        matches!(
            self,
            Kind::Missing | Kind::NoInterface | Kind::NoService | Kind::NoWorker
        )
    }
}

/// Why a value was not accepted.
#[derive(Debug)]
pub(super) struct BadValue {
    pub kind: ProblemKind,
    pub what: String,
    pub expected: Cow<'static, str>,
    pub remedy: String,
}

impl ConfigError {
    pub(super) fn unreadable(file: &str, error: &std::io::Error) -> Self {
        Self::from(Problem {
            kind: ProblemKind::Unreadable,
            origin: Origin::file(file, None),
            key: String::new(),
            what: format!("cannot be read: {error}"),
            expected: "a readable TOML file".to_owned(),
            remedy: "check the path and its permissions; `memlb check --example` prints an \
                     example to begin with"
                .to_owned(),
        })
    }

    pub(super) fn not_utf8(file: &str, found: NotUtf8) -> Self {
        Self::from(Problem {
            kind: ProblemKind::NotUtf8,
            origin: Origin::file(file, found.line()),
            key: String::new(),
            what: found.to_string(),
            expected: "a TOML file, which is encoded in UTF-8".to_owned(),
            remedy: found.remedy(file),
        })
    }
}

impl Origin {
    pub(super) fn file(file: &str, line: Option<usize>) -> Self {
        let file = file.to_owned();
        match line {
            Some(line) => Self::Line { file, line },
            None => Self::File { file },
        }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        // A flag implies its key.
        if !self.key.is_empty() && !matches!(self.origin, Origin::Flag { .. } | Origin::Set { .. })
        {
            write!(f, ", {}", self.key)?;
        }
        write!(f, ": {}", self.what)?;
        write!(f, "\n  expected: {}", self.expected)?;
        write!(f, "\n  to do: {}", self.remedy)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}, line {line}"),
            Self::File { file } => f.write_str(file),
            Self::Flag { option } => f.write_str(option),
            Self::Set { set } => write!(f, "--set {set}"),
        }
    }
}
