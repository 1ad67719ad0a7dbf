//! The figures of docs/policies.md are those that its commands print.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies.md");

/// A command of the document, and the table after it.
struct Table<'a> {
    command: &'a str,
    rows: Vec<Vec<&'a str>>,
}

fn tables(text: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("\n```sh\nmemlb simulate") {
        let (arguments, after) = after.split_once('\n').expect("the end of the command");
        let lines = after.lines().skip_while(|line| !line.starts_with('|'));
        let rows = lines.take_while(|line| line.starts_with('|'));
        tables.push(Table {
            command: arguments,
            rows: rows.map(cells).collect(),
        });
        rest = after;
    }
    tables
}

fn cells(row: &str) -> Vec<&str> {
    let cells = row.trim_matches('|').split('|');
    cells.map(|it| it.trim_matches([' ', '*', '`'])).collect()
}

fn simulate(arguments: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_memlb"))
        .arg("simulate")
        .args(arguments.split_whitespace())
        .arg("--json")
        .output()
        .expect("run memlb");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {error}");
    serde_json::from_slice(&output.stdout).expect("the results as JSON")
}

/// Returns the cell of a policy at a report interval.
fn cell(results: &Value, policy: &str, interval: &str) -> String {
    let interval: Duration = humantime::parse_duration(interval).expect("a duration");
    let interval_ms = u64::try_from(interval.as_millis()).expect("a short one");
    let outcomes = results["outcomes"].as_array().expect("outcomes");
    let is_it = |it: &&Value| it["policy"] == policy && it["report_interval_ms"] == interval_ms;
    let outcome = outcomes.iter().find(is_it).expect("an outcome");
    let peak = format!(
        "{:.0}%",
        outcome["peak_percent"].as_f64().expect("a number")
    );
    match outcome["rejected"].as_u64().expect("a number") {
        0 => peak,
        rejected => format!("{peak}, {} refused", thousands(rejected)),
    }
}

fn thousands(number: u64) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        more => format!("{},{:03}", thousands(more), number % 1_000),
    }
}

#[test]
fn the_document_has_the_figures_of_its_commands() {
    let text = fs::read_to_string(DOCUMENT).expect("docs/policies.md");
    let tables = tables(&text);
    assert_eq!(tables.len(), 3);
    for Table { command, rows } in &tables {
        let (head, rows) = rows.split_first().expect("a table");
        let rows = rows.iter().skip(1);
        if head[0] == "hold" {
            let row = rows.last().expect("a row");
            for (hold, documented) in head.iter().zip(row).skip(1) {
                let results = simulate(&command.replace("250ms", hold));
                assert_eq!(
                    cell(&results, "memory", "100ms"),
                    *documented,
                    "hold {hold}"
                );
            }
            continue;
        }
        let results = simulate(command);
        for row in rows {
            for (policy, documented) in head.iter().zip(row).skip(1) {
                let measured = cell(&results, policy, row[0]);
                assert_eq!(measured, *documented, "{command}: {policy}, {}", row[0]);
            }
        }
    }
}
