//! The report of the comparison, as text and as JSON.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::{
    changes::SelectionChanges,
    contender::Contender,
    expectation::{self, Comparison},
    machine::Machine,
    outage::Outage,
    processor::{self, ProcessorCost},
    rounds::{CONNECTIONS, Samples, Workload},
    statistics::Spread,
    table::Table,
};

/// Everything of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub rounds: usize,
    pub seconds: u64,
    pub contenders: Vec<Contender>,
    /// Where and how memlb was attached.
    pub attachment: Vec<(Contender, Value)>,
    pub medians: Vec<Median>,
    pub expectations: Vec<Comparison>,
    pub outage: Option<Outage>,
    pub changes: Vec<(Contender, SelectionChanges)>,
    pub processor: Vec<ProcessorCost>,
    pub samples: Samples,
    /// Share of the processors' time that the hypervisor stole meanwhile.
    pub stolen_percent: f64,
}

/// The medians of a contender's rounds for one workload.
#[derive(Debug, Serialize)]
pub struct Median {
    pub row: Workload,
    pub contender: Contender,
    pub unit: &'static str,
    pub value: Option<Spread>,
    pub p99_ms: Option<Spread>,
    pub errors: u64,
    /// Ratios within each round.
    pub to_direct: Option<Spread>,
    pub to_router: Option<Spread>,
    pub to_nginx_of_2018: Option<Spread>,
    pub to_ipvs: Option<Spread>,
}

/// Returns the medians of every contender for every workload.
pub fn medians(samples: &Samples, contenders: &[Contender]) -> Vec<Median> {
    let rows = Workload::ALL.into_iter().filter(|row| samples.has(*row));
    rows.flat_map(|row| {
        contenders.iter().map(move |contender| {
            let to = |base| samples.ratios(row, *contender, base);
            Median {
                row,
                contender: *contender,
                unit: row.unit(),
                value: samples.values(row, *contender),
                p99_ms: samples.p99_ms(row, *contender),
                errors: samples.errors(row, *contender),
                to_direct: to(Contender::Direct),
                to_router: to(Contender::Router),
                to_nginx_of_2018: to(Contender::Nginx2018),
                to_ipvs: to(Contender::Ipvs),
            }
        })
    })
    .collect()
}

impl Report {
    /// Returns the report as text.
    pub fn text(&self) -> String {
        let mut text = self.heading();
        if !self.medians.is_empty() {
            text += &self.method();
        }
        for row in Workload::ALL {
            if self.samples.has(row) {
                text += &self.row(row);
            }
        }
        text += &self.expectations();
        text += &self.outage();
        text += &self.changes();
        if !self.processor.is_empty() {
            text += &processor::text(&self.processor);
        }
        text
    }

    fn heading(&self) -> String {
        let Machine {
            kernel,
            processor,
            processors,
            busy_before_percent,
            ..
        } = &self.machine;
        let mut text = format!(
            "\nLinux {kernel}, {processors} × {processor}; load before the measurement {busy_before_percent:.0} %, stolen \
             by the hypervisor {:.1} %\n",
            self.stolen_percent
        );
        for (contender, interfaces) in &self.attachment {
            for interface in interfaces.as_array().into_iter().flatten() {
                let field = |name: &str| interface[name].as_str().unwrap_or_default().to_owned();
                let (name, attachment) = (field("name"), field("attachment"));
                let label = contender.label();
                text += &format!("{label}: {name} by {attachment}, {}\n", field("reason"));
            }
        }
        text
    }

    fn method(&self) -> String {
        let noise = Workload::ALL.into_iter().filter_map(|row| {
            let Spread {
                median,
                least,
                most,
            } = self.samples.values(row, Contender::Direct)?;
            let [less, more] = [least, most].map(|end| (end / median - 1.0) * 100.0);
            Some(format!("{less:.0} to +{more:.0} % {}", row.label()))
        });
        let mut text = format!(
            "wrk with {CONNECTIONS} connections, {} rounds of {} s; medians, and medians of the ratios within each round\n",
            self.rounds, self.seconds
        );
        let noise: Vec<String> = noise.collect();
        if self.rounds > 1 && !noise.is_empty() {
            text += &format!(
                "no balancer: rounds differ from the median by {}\n",
                noise.join(", ")
            );
        }
        text
    }

    fn row(&self, row: Workload) -> String {
        let rare = |contender, title| self.contenders.contains(&contender).then_some(title);
        let nginx = rare(Contender::Nginx2018, "of nginx 2018");
        let ipvs = rare(Contender::Ipvs, "of IPVS");
        let usual = [
            row.label(),
            row.unit(),
            "p99 ms",
            "of no balancer",
            "from–to",
            "of router hop",
        ];
        let titles: Vec<&str> = usual
            .into_iter()
            .chain(nginx)
            .chain(ipvs)
            .chain(["errors"])
            .collect();
        let mut table = Table::new(&titles);
        for median in self.medians.iter().filter(|median| median.row == row) {
            let figure = |spread: Option<Spread>, decimals: usize| {
                spread.map_or("–".into(), |spread| {
                    format!("{:.decimals$}", spread.median)
                })
            };
            let usual = [
                median.contender.label().into(),
                figure(median.value, 0),
                figure(median.p99_ms, 1),
                figure(median.to_direct, 2),
                median.to_direct.map_or("–".into(), range),
                figure(median.to_router, 2),
            ];
            table.row(
                usual
                    .into_iter()
                    .chain(nginx.map(|_| figure(median.to_nginx_of_2018, 2)))
                    .chain(ipvs.map(|_| figure(median.to_ipvs, 2)))
                    .chain([median.errors.to_string()]),
            );
        }
        format!("\n{table}")
    }

    fn expectations(&self) -> String {
        if self.expectations.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["expected minimum", "expected", "measured", "from–to", ""]);
        for comparison in &self.expectations {
            table.row([
                format!(
                    "{}: {}, of {}",
                    comparison.of.label(),
                    comparison.row.label(),
                    comparison.against.label()
                ),
                format!("{:.2}", comparison.at_least),
                format!("{:.2}", comparison.measured.median),
                range(comparison.measured),
                verdict(comparison.reached).into(),
            ]);
        }
        format!("\n{table}")
    }

    fn outage(&self) -> String {
        let Some(outage) = &self.outage else {
            return String::new();
        };
        format!(
            "\n  link of the worker cut: longest outage of a client that sends a request every 10 ms {:.0} ms \
             (median of {}), {:.0} ms at worst; expected at most {} ms: {}\n",
            outage.spread.median,
            outage.longest_gaps_ms.len(),
            outage.spread.most,
            outage.at_most_ms,
            verdict(outage.reached)
        )
    }

    fn changes(&self) -> String {
        let mut text = String::new();
        for (contender, outcome) in &self.changes {
            let expected = if contender.is_memlb() {
                format!("; expected none: {}", verdict(outcome.failed() == 0))
            } else {
                String::new()
            };
            // Writing to a String cannot fail.
            _ = write!(
                text,
                "\n  {}: {} selection changes in {:.0} s under load, {} of {} requests failed \
                 ({} kept alive, {} one connection each, {} checked){expected}\n",
                contender.label(),
                outcome.changes,
                outcome.seconds,
                outcome.failed(),
                outcome.requests(),
                outcome.kept_alive.errors.total(),
                outcome.one_each.errors.total(),
                outcome.checked_wrong.len(),
            );
        }
        text
    }
}

/// Returns the minimum of the ratio of `median` to no balancer, if there is one.
pub fn goal(median: &Median) -> Option<f64> {
    expectation::at_least(median.contender, median.row, Contender::Direct)
}

fn range(spread: Spread) -> String {
    format!("{:.2}–{:.2}", spread.least, spread.most)
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}
