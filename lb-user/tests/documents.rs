//! The reference documents name what the code has: every event with its fields, every map, every verdict;
//! and every link between documents leads somewhere.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use lb_common::{
    maps::{DSR_MAPS, MANAGER_MAPS},
    verdict::{Verdict, VerdictClass},
};
use lb_core::{Audience, Event, EventKind, Severity};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The text between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of a document's tables whose first cell is a word of code, as (that word, all cells).
fn rows(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let first = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((first, cells))
    })
}

fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap();
    rest.split("\n## ").next().unwrap()
}

#[test]
fn events_are_documented() {
    let text = read("docs/events.md");
    let (events, trace) = text.split_once("## Lines of a trace").unwrap();
    let documented: BTreeMap<&str, Vec<&str>> =
        rows(events).filter(|(_, cells)| cells.len() >= 5).collect();
    let kinds: BTreeMap<String, &EventKind> = Event::KINDS
        .iter()
        .map(|kind| (snake_case(kind.name), kind))
        .collect();
    assert_eq!(
        documented.keys().collect::<Vec<_>>(),
        kinds.keys().collect::<Vec<_>>(),
        "docs/events.md"
    );
    for (name, kind) in kinds {
        let cells = &documented[name.as_str()];
        let severity = match (kind.audience, kind.severity) {
            (Audience::EventLog, _) => "–",
            (Audience::Everyone, Severity::Info) => "info",
            (Audience::Everyone, Severity::Warn) => "warn",
        };
        assert_eq!(cells[1], severity, "severity of {name}");
        let expected: BTreeSet<&str> = kind.fields.iter().copied().collect();
        let fields: BTreeSet<&str> = code(cells[2]).collect();
        // The fields of an order stand in place of it.
        if !expected.contains("order") {
            assert_eq!(fields, expected, "fields of {name}");
        }
        assert!(!cells[3].is_empty() && !cells[4].is_empty(), "{name}");
    }
    let lines: Vec<&str> = rows(trace).map(|(line, _)| line).collect();
    assert_eq!(
        lines,
        ["begun", "packet", "dropped", "end"],
        "lines of a trace"
    );
}

#[test]
fn maps_are_documented() {
    let text = read("docs/maps.md");
    for (heading, maps) in [
        ("## On the manager", MANAGER_MAPS),
        ("## On a worker", DSR_MAPS),
    ] {
        let documented: BTreeSet<&str> =
            rows(section(&text, heading)).map(|(map, _)| map).collect();
        let pinned = maps.iter().map(|it| it.name).collect();
        assert_eq!(documented, pinned, "{heading}");
    }
}

#[test]
fn verdicts_are_documented() {
    let text = read("docs/verdicts.md");
    let documented: Vec<&str> = rows(&text).map(|(verdict, _)| verdict).collect();
    let names: Vec<&str> = Verdict::ALL.iter().map(|it| it.name()).collect();
    assert_eq!(
        documented, names,
        "docs/verdicts.md, in the order of the code"
    );
    for (verdict, cells) in rows(&text) {
        let class = Verdict::from_name(verdict).unwrap().class().name();
        assert!(
            cells[2].starts_with(class),
            "docs/verdicts.md: {verdict} is {class}, not {:?}",
            cells[2]
        );
    }
}

#[test]
fn the_alert_on_refusals_follows_the_class() {
    let rules = read("scripts/monitoring/memlb.rules.yml");
    let (_, rule) = rules.split_once("alert: MemlbConnectionsRefused").unwrap();
    let expression = rule.lines().find(|line| line.contains("expr:")).unwrap();
    let class = VerdictClass::Refused.name();
    assert!(
        expression.contains(&format!("{{class=\"{class}\"}}")),
        "{expression}"
    );
}

#[test]
fn links_lead_somewhere() {
    let mut documents = vec![
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ]
    .into_iter()
    .map(|it| root().join(it))
    .collect::<Vec<_>>();
    for folder in [
        "docs",
        "scripts/ha",
        "scripts/monitoring",
        "scripts/vagrant",
    ] {
        let files = fs::read_dir(root().join(folder)).unwrap();
        let files = files.map(|it| it.unwrap().path());
        documents.extend(files.filter(|it| it.extension().is_some_and(|it| it == "md")));
    }
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let place = document.display();
            assert!(target.exists(), "{place}: {link} leads nowhere");
            if !anchor.is_empty() {
                let headings = fs::read_to_string(&target).unwrap();
                let found = headings.lines().filter(|line| line.starts_with('#'));
                assert!(
                    found.map(slug).any(|it| it == anchor),
                    "{place}: no heading for {link}"
                );
            }
        }
    }
}

/// What a heading is called in links.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter_map(|it| match it {
        ' ' => Some('-'),
        it if it.is_alphanumeric() || it == '-' || it == '_' => Some(it),
        _ => None,
    });
    kept.collect()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
