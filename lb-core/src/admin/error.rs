//! Why a command is refused.

use std::time::Duration;

use humantime::format_duration;
use thiserror::Error;

use super::{AdminState, MAX_PAUSE, MAX_REASON_BYTES, MAX_WEIGHT_PERCENT, MIN_PAUSE};

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdminError {
    #[error("{}", unknown_name("worker", .worker, .known))]
    UnknownWorker { worker: String, known: Vec<String> },
    #[error("{}", unknown_name("service", .service, .known))]
    UnknownService { service: String, known: Vec<String> },
    #[error("{worker} does not serve {service}: it serves {}", .services.join(", "))]
    NotInService {
        worker: String,
        service: String,
        services: Vec<String>,
    },
    #[error(
        "{worker} is {} for all its services: undrain it without --service, and drain it for the services other \
         than {service} if need be",
        .state.description()
    )]
    SetForAllServices {
        worker: String,
        service: String,
        state: AdminState,
    },
    #[error("a weight of {percent} percent is too large: expected 0 to {MAX_WEIGHT_PERCENT}")]
    WeightTooLarge { percent: u32 },
    #[error(
        "a pause of {} is not possible: expected {} to {}",
        format_duration(Duration::from_millis(*.for_ms)),
        format_duration(MIN_PAUSE),
        format_duration(MAX_PAUSE)
    )]
    PauseOutOfRange { for_ms: u64 },
    /// A paused worker is silent in all its services.
    #[error(
        "a worker is paused in all its services, since it is silent in all of them: leave out --service"
    )]
    PauseOfOneService,
    #[error("the reason has {bytes} bytes: expected at most {MAX_REASON_BYTES}")]
    ReasonTooLong { bytes: usize },
    #[error(
        "the reason contains {character:?}: expected one line of text, without control characters"
    )]
    ReasonUnprintable { character: char },
}

/// Returns an error text for an unknown `name`, with the most similar known ones.
pub fn unknown_name(kind: &str, name: &str, known: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let distance = |candidate: &&str| strsim::damerau_levenshtein(name, candidate);
    let mut known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    if let Some(nearest) = known.iter().min_by_key(|candidate| distance(candidate))
        && distance(nearest) <= 2
    {
        return format!("there is no {kind} {name:?}; did you mean {nearest}?");
    }
    let count = known.len();
    if count == 0 {
        return format!("there is no {kind} {name:?}, and no other {kind}");
    }
    if count <= SHOWN {
        return format!("there is no {kind} {name:?}, only {}", known.join(", "));
    }
    known.sort_by_cached_key(distance);
    format!(
        "there is no {kind} {name:?}; of {count}, the most similar are {}",
        known[..SHOWN].join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::check_reason;
    use super::*;

    #[test]
    fn unknown_name_error_lists_the_most_similar_names() {
        let said = unknown_name("worker", "nosuch", &["a", "b"]);
        assert_eq!(said, "there is no worker \"nosuch\", only a, b");
        let said = unknown_name("source", "file", &[""; 0]);
        assert_eq!(said, "there is no source \"file\", and no other source");
        let many: Vec<String> = (0..300).map(|it| format!("worker{it}")).collect();
        assert_eq!(
            unknown_name("worker", "other7", &many),
            "there is no worker \"other7\"; of 300, the most similar are worker7, worker0, \
             worker1, worker2, worker3"
        );
        assert!(unknown_name("worker", "worker7x", &many).ends_with("did you mean worker7?"));
    }

    #[test]
    fn reason_must_be_one_line_without_control_characters() {
        assert_eq!(
            check_reason("kernel update, ticket 42: \u{fc}bermorgen"),
            Ok(())
        );
        for (reason, problem) in [
            (
                "a\u{1b}[31mred",
                AdminError::ReasonUnprintable {
                    character: '\u{1b}',
                },
            ),
            ("a\nb", AdminError::ReasonUnprintable { character: '\n' }),
            (&"r".repeat(1001), AdminError::ReasonTooLong { bytes: 1001 }),
        ] {
            let said = problem.to_string();
            assert_eq!(check_reason(reason), Err(problem));
            assert!(
                said.len() < 120 && !said.contains(char::is_control),
                "{said}"
            );
        }
    }
}
