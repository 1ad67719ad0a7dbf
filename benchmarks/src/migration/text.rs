//! The migrations as tables.

use clap::ValueEnum;

use super::{
    Migration, MigrationReport,
    clients::HELD,
    grade::{self, Grade},
    quantities::Phase,
    scenario::Method,
};
use crate::table::Table;

/// Returns the report as text.
pub fn text(report: &MigrationReport) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "\nLinux {}, {} × {}; load before the measurement {:.0} %\n",
        machine.kernel, machine.processors, machine.processor, machine.busy_before_percent
    );
    text += &format!(
        "{HELD} clients keep a connection and ask every 50 ms, one asks for 4 MiB/s, one opens a connection every 50 ms, \
         and one sends 100 datagrams a second\n"
    );
    for what in Method::value_variants() {
        let mut migrations = report
            .migrations
            .iter()
            .filter(|it| it.scenario.what == *what)
            .peekable();
        if migrations.peek().is_none() {
            continue;
        }
        let migrations: Vec<_> = migrations.collect();
        text += &format!("\n{}", noticed(*what, &migrations));
        text += &format!("\n{}", quantities(&migrations));
    }
    text + "\n" + grade::NOTE
}

fn noticed(what: Method, migrations: &[&Migration]) -> Table {
    let mut table = Table::new(&[
        what.label(),
        "stood still ms",
        "moved KiB",
        "lost connections",
        "bulk",
        "downtime ms",
        "new: failed",
        "slowest ms",
        "datagrams lost",
    ]);
    for migration in migrations {
        let noticed = &migration.noticed;
        let datagrams = noticed
            .datagrams_lost
            .map_or("–".into(), |it| it.to_string());
        table.row([
            migration.scenario.label(),
            format!("{:.0}", migration.moved.still_ms),
            format!("{}", migration.moved.bytes / 1024),
            format!("{} of {}", noticed.held_lost, noticed.held),
            if noticed.bulk_lost { "lost" } else { "kept" }.into(),
            format!("{:.0}", noticed.downtime_ms),
            format!("{} of {}", noticed.new_failed, noticed.new),
            format!("{:.0}", noticed.new_longest_ms),
            datagrams,
        ]);
    }
    table
}

fn quantities(migrations: &[&Migration]) -> Table {
    let mut table = Table::new(&[
        "before / during / after",
        "throughput MiB/s",
        "delay ms",
        "jitter ms",
        "its peak",
        "datagrams lost %",
        "classes d j l",
        "balancer CPU %",
        "worker CPU %",
        "balancer MiB",
        "worker MiB",
    ]);
    for migration in migrations {
        let figures = |figure: fn(&Phase) -> Option<f64>, decimals: usize| {
            let [before, during, after] = &migration.phases;
            let figures = [before, during, after].map(|phase| match figure(phase) {
                Some(value) => format!("{value:.decimals$}"),
                None => "–".into(),
            });
            figures.join(" / ")
        };
        let grades = migration
            .grades
            .map(|it| [it.delay, it.jitter, it.loss].map(grade).concat());
        table.row([
            migration.scenario.label(),
            figures(|it| Some(it.throughput_mib_s), 1),
            figures(|it| it.delay_ms, 1),
            figures(|it| it.mean_jitter_ms, 1),
            figures(|it| it.peak_jitter_ms, 0),
            figures(|it| it.lost_percent, 1),
            grades.join(" / "),
            figures(|it| it.balancer_cpu_percent, 1),
            figures(|it| Some(it.worker_cpu_percent), 0),
            figures(|it| it.balancer_mib, 0),
            figures(|it| it.worker_mib, 0),
        ]);
    }
    table
}

fn grade(grade: Option<Grade>) -> String {
    grade.map_or("–".into(), |it| it.to_string())
}
