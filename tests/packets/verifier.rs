//! The verifier's instructions for each program, compared with the recorded ones.
//!
//! It gives up at a million instructions, on older kernels much sooner than on newer ones, and nothing
//! else tells how near a program has come.

use memlb_tests::{kernel::Series, notice::print_message, root_test};

use crate::{
    datapath::{Datapath, verified_instructions},
    dsr_translator,
};

/// A line each: the kernel's series, the program, its instructions.
const ON_RECORD: &str = include_str!("verifier.txt");

/// How much more than on record is no jump yet, in percent.
const TOLERANCE: u64 = 20;

const ACCEPT: &str = "if that is meant to be, `cargo xtask kernels --record` puts it on record";

#[root_test]
fn no_program_needs_many_more_instructions_than_recorded() {
    let series = Series::running().unwrap();
    let jumps: Vec<_> = figures()
        .into_iter()
        .filter_map(|(program, now)| describe_increase(ON_RECORD, series, &program, now))
        .collect();
    assert!(jumps.is_empty(), "{}; {ACCEPT}", jumps.join("; "));
}

#[root_test]
#[ignore = "prints what `cargo xtask kernels --record` puts on record"]
fn prints_the_figures() {
    let series = Series::running().unwrap();
    for (program, instructions) in figures() {
        print_message(format_args!("verified {series} {program} {instructions}"));
    }
}

fn figures() -> Vec<(String, u64)> {
    let datapath = Datapath::acquire().unwrap();
    let mut figures = datapath.verified_instructions();
    datapath.release();
    figures.extend(verified_instructions(&dsr_translator::load().unwrap()));
    assert_eq!(figures.len(), 7, "{figures:?}");
    figures
}

/// Says how much harder a program has become to verify, if it has.
fn describe_increase(record: &str, series: Series, program: &str, now: u64) -> Option<String> {
    let Some((of, before)) = on_record(record, series, program) else {
        return Some(format!("{program} has no figure on record"));
    };
    (now * 100 > before * (100 + TOLERANCE)).then(|| {
        format!(
            "the verifier of Linux {series} goes through {now} instructions of {program}, {before} \
             are on record for {of}"
        )
    })
}

/// The figure of this series; without one, that of the nearest older series, or of the oldest.
fn on_record(record: &str, series: Series, program: &str) -> Option<(Series, u64)> {
    let mut figures: Vec<(Series, u64)> = record
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let series = words.next()?.parse().ok()?;
            (words.next()? == program).then_some(())?;
            Some((series, words.next()?.parse().ok()?))
        })
        .collect();
    figures.sort_unstable();
    let not_newer = figures.iter().rfind(|(of, _)| *of <= series);
    not_newer.or(figures.first()).copied()
}

#[test]
fn compares_with_the_nearest_older_kernel_on_record() {
    let record = "6.1 one 1000\n6.12 one 500\n6.12 other 7\n";
    let figure = |series: &str, program| {
        let found = on_record(record, series.parse().unwrap(), program);
        found.map(|(_, instructions)| instructions)
    };
    assert_eq!(figure("6.1", "one"), Some(1000));
    assert_eq!(figure("6.11", "one"), Some(1000));
    assert_eq!(figure("6.18", "one"), Some(500));
    assert_eq!(figure("5.17", "one"), Some(1000));
    assert_eq!(figure("6.1", "other"), Some(7));
    assert_eq!(figure("6.12", "third"), None);
}

#[test]
fn an_increase_by_a_fifth_is_accepted() {
    let of =
        |program, now| describe_increase("6.12 one 500", "6.12".parse().unwrap(), program, now);
    assert_eq!(of("one", 600), None);
    assert!(of("one", 601).is_some());
    assert!(of("other", 1).is_some());
}
