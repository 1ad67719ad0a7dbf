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
    verdict::Verdict,
};

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
    let mut expected = BTreeMap::new();
    for folder in ["lb-core/src", "lb-user/src"] {
        collect_events(&root().join(folder), &mut expected);
    }
    assert!(expected.len() > 30, "the events are found: {expected:?}");
    let text = read("docs/events.md");
    let documented: BTreeMap<String, BTreeSet<String>> = rows(&text)
        .filter(|(_, cells)| cells.len() >= 5)
        .map(|(kind, cells)| (kind.into(), code(cells[2]).map(Into::into).collect()))
        .collect();
    let kinds = |events: &BTreeMap<_, _>| events.keys().cloned().collect::<Vec<String>>();
    assert_eq!(kinds(&documented), kinds(&expected), "docs/events.md");
    for (kind, fields) in &expected {
        let missing: Vec<_> = fields.difference(&documented[kind]).collect();
        assert!(
            missing.is_empty(),
            "{kind} in docs/events.md lacks {missing:?}"
        );
    }
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
    for folder in ["docs", "scripts/monitoring", "scripts/vagrant"] {
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

/// Collects the variants of every enum that is written as `{"event": KIND, …}`, with their fields.
fn collect_events(folder: &Path, events: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_events(&path, events);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            // At the beginning of a line: those of tests stand further in.
            for (before, after) in splits(&text, "\n#[serde(tag = \"event\"") {
                let derives = before.rsplit("\n#[derive(").next().unwrap();
                if derives.contains("Serialize") {
                    variants(after.split("\n}").next().unwrap(), events);
                }
            }
        }
    }
}

/// Every way to split `text` at `mark`.
fn splits<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let found = text.match_indices(mark);
    found.map(move |(at, _)| (&text[..at], &text[at + mark.len()..]))
}

/// Reads variants as rustfmt lays them out: each begins a line behind four spaces, its fields stand behind
/// eight or between braces on the same line. A field that is flattened has no name of its own.
fn variants(body: &str, events: &mut BTreeMap<String, BTreeSet<String>>) {
    let (mut kind, mut flattened) = (String::new(), false);
    for line in body.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if indent == 4 && text.starts_with(char::is_uppercase) {
            let end = text.find(|it: char| !it.is_alphanumeric()).unwrap();
            kind = snake_case(&text[..end]);
            let fields = events.entry(kind.clone()).or_default();
            let inside = text[end..].split_once('{').map_or("", |(_, inside)| inside);
            fields.extend(inside.split(", ").filter_map(field));
        } else if indent == 8 && text.starts_with(char::is_lowercase) && !flattened {
            events.entry(kind.clone()).or_default().extend(field(text));
        }
        flattened = text == "#[serde(flatten)]";
    }
}

/// The name of `name: Type`.
fn field(text: &str) -> Option<String> {
    let (name, _) = text.trim().split_once(':')?;
    Some(name.to_owned())
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
