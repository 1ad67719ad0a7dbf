//! Benchmarks in an emulated machine with one of Debian's kernels. Its clock counts instructions, one nanosecond each,
//! so that the load of this machine has no effect.

use std::time::Duration;

use anyhow::{Context, Result};
use memlb_tests::kernel::Series;
use serde_json::Value;

use xtask::{
    interrupt::Interrupt,
    kernels::{Guest, Kernel, Load, cache},
    workspace::print_message,
};

/// The kernel of emulated machines.
pub const SERIES: Series = Series {
    major: 6,
    minor: 12,
};

/// Option by which a benchmark writes its report to stdout, after its table.
pub const REPORT: &str = "--json /proc/self/fd/1";

/// Runs the only task of `load` in the machine, whose files are in folder `name`. Returns the task's table and report.
pub fn run(name: &str, load: &Load<'_>, deadline: Duration) -> Result<(String, Value)> {
    let interrupt = Interrupt::catch()?;
    let cache = cache();
    let kernel = Kernel::provide(SERIES, &cache)?;
    let release = kernel.release.clone();
    let guest = Guest::prepare(kernel, cache.join(name), load)?;
    let (output, took) = guest.run(deadline, &interrupt)?;
    let (task, _) = load.tasks.first().context("there is a task")?;
    let found = results(&output, task).with_context(|| {
        guest.show_logs();
        format!("{task} failed on Linux {release}")
    })?;
    print_message(format!("the machine ran for {} s", took.as_secs()));
    Ok(found)
}

/// Finds the tables of a task, and the report after them, in the output of the guest.
fn results(output: &str, task: &str) -> Result<(String, Value)> {
    let end = output
        .find(&format!("memlb: {task} ended with 0"))
        .context("it did not end with success")?;
    let output = &output[..end];
    let json = output.find("\n{").or_else(|| output.find("\n["));
    let json = json.context("its output has no report")?;
    let report = serde_json::from_str(&output[json..]).context("read its report")?;
    let is_progress = |line: &&str| {
        let beginnings = ["xtask: ", "memlb: ", "measuring "];
        beginnings.iter().any(|it| line.starts_with(it))
    };
    let tables: Vec<&str> = output[..json]
        .lines()
        .filter(|line| !is_progress(line))
        .collect();
    Ok((tables.join("\n").trim_matches('\n').to_owned(), report))
}

#[cfg(test)]
mod tests {
    use super::results;

    #[test]
    fn finds_the_table_and_the_report() {
        let said = "memlb: running compare\nxtask: round 1 of 1\n\n  Linux 6.12\n  a  1\n\
                    \n{\n  \"rounds\": 1\n}\nmemlb: compare ended with 0\nmemlb: the end\n";
        let (table, report) = results(said, "compare").expect("results");
        assert_eq!(table, "  Linux 6.12\n  a  1");
        assert_eq!(report["rounds"], 1);
    }

    #[test]
    fn finds_the_table_of_a_task_that_prints_nothing_else() {
        let said = "memlb: running packet\n  a  1\n{}\nmemlb: packet ended with 0\n";
        let (table, _) = results(said, "packet").expect("results");
        assert_eq!(table, "  a  1");
    }

    #[test]
    fn finds_all_tables_of_a_task() {
        let said = "memlb: running load\nmeasuring a\n\na\n  1\nmeasuring b\nb\n  2\n[\n  1\n]\n\
                    memlb: load ended with 0\n";
        let (tables, report) = results(said, "load").expect("results");
        assert_eq!(tables, "a\n  1\nb\n  2");
        assert_eq!(report[0], 1);
    }

    #[test]
    fn accepts_no_task_that_failed() {
        for said in [
            "",
            "{}\nmemlb: compare ended with 1\n",
            "xtask: no\nmemlb: compare ended with 0\n",
            "\n{ half\nmemlb: compare ended with 0\n",
        ] {
            assert!(results(said, "compare").is_err(), "{said}");
        }
    }
}
