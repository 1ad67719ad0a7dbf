//! Compares memlb with other balancers on this machine, and measures its parts.

mod balancers;
mod changes;
mod contender;
mod emulated;
mod expectation;
mod herd;
mod instructions;
mod ipvs;
mod laboratory;
mod load;
mod machine;
mod migration;
mod outage;
mod pair;
mod picture;
mod processor;
mod report;
mod rounds;
mod started;
mod statistics;
mod svg;
mod sync;
mod table;
mod thesis;
mod wrk;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use memlb_tests::cluster::BINARY;
use serde::Serialize;
use serde_json::Value;

use self::{
    contender::Contender,
    laboratory::Laboratory,
    machine::{Machine, ProcessorTime},
    report::Report,
    rounds::{Samples, Workload},
    wrk::Wrk,
};
use xtask::{
    build,
    interrupt::Interrupt,
    packages::{Tool, provide_tools},
    privilege::{is_root, restart_as_root, run_as_root},
    setup, tools,
    workspace::print_message,
};

const TOOLS: &[Tool] = tools! {
    "wrk" "wrk" "generates load and measures";
    "haproxy" "haproxy" "is one of the contenders";
    "nft" "nftables" "is one of the contenders";
};

const WRK: &[Tool] = tools! {
    "wrk" "wrk" "generates load and measures";
};

const IPVS_TOOLS: &[Tool] = tools! {
    "wrk" "wrk" "generates load and measures";
    "ipvsadm" "ipvsadm" "sets IPVS up";
    "sysctl" "procps" "makes the manager forward packets";
};

/// Compares memlb with other balancers on this machine
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    args_conflicts_with_subcommands = true
)]
struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    comparison: ComparisonOptions,
    /// Write all measurements to this file (JSON)
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ComparisonOptions {
    /// Number of rounds; each round measures every contender once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Duration of one measurement; the nginx of 2018 reloads every 3 s
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure only these figures
    #[arg(long, value_name = "FIGURE", value_delimiter = ',')]
    only: Vec<Item>,
    /// Compare only these contenders
    #[arg(long, value_name = "CONTENDER", value_delimiter = ',')]
    with: Vec<Contender>,
    /// Write a picture of the comparison to this file (SVG)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Repeats the experiment of 2018 and prints it beside its published figures
    Thesis {
        /// Duration of the measurement for each number of clients
        #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Measures memlb on the machines of `cargo xtask machines up`, and the load of the whole machines
        #[arg(long)]
        machines: bool,
    },
    /// Measures the manager: its share of a core with 1,000 workers, how late it notices the death of one,
    /// and the effect of 1,000 decisions a second on clients
    Control,
    /// Measures the peak memory of real workers, by policy and by report interval
    Herd,
    /// Measures two managers: the cost and the lag of their replication, and the connections that a crash loses
    Pair {
        /// Duration of one measurement at a rate
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// Measure a crash on Debian's Linux 6.12 under emulation, compared with IPVS's sync daemon
        #[arg(long)]
        emulated: bool,
    },
    /// The comparison with IPVS's sync daemon, inside the emulated machine
    #[command(hide = true)]
    Sync,
    /// Measures connection rates and many connections at once, compared with nftables and HAProxy
    Load(load::LoadOptions),
    /// Moves a worker to another host while clients use it, with memlb, HAProxy, nftables or no balancer
    Migration(migration::MigrationOptions),
    /// The server in a virtual machine that moves
    #[command(hide = true)]
    Serve { port: u16 },
    /// Compares memlb with IPVS in instructions, on Debian's Linux 6.12 under emulation
    Ipvs {
        /// Number of rounds; each round measures every contender once
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Duration of one measurement, by the emulated clock
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Measures the cost of a packet in the programs, compared with the minimum
    Packet {
        /// Number of rounds [default: 51; with --instructions: 3]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: Option<u16>,
        /// Count instructions on Debian's Linux 6.12 under emulation, not nanoseconds here
        #[arg(long)]
        instructions: bool,
    },
}

/// A figure of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Item {
    /// Small pages over kept-alive connections
    KeptAlive,
    /// Small pages over one connection each
    OneEach,
    /// Bodies of 1 MiB
    Bulk,
    /// The longest gap when the selected worker is cut off
    Outage,
    /// Failed requests while the selection changes
    Changes,
    /// CPU time of the balancer for each gigabyte
    Processor,
}

fn main() -> ExitCode {
    let Err(error) = bench(&Options::parse()) else {
        return ExitCode::SUCCESS;
    };
    print_message(format!("{error:#}"));
    ExitCode::FAILURE
}

/// Builds what a benchmark needs, and measures.
fn bench(options: &Options) -> Result<()> {
    if let Some(Other::Serve { port }) = options.other {
        return migration::serve(port);
    }
    // Made before this program restarts as root, so that the files belong to the user.
    for file in options.files() {
        File::create(file).with_context(|| format!("create {}", file.display()))?;
    }
    let json = options.json.as_deref();
    if let Some(Other::Packet {
        rounds,
        instructions: false,
    }) = options.other
    {
        return started::of_packets(rounds.unwrap_or(51), json);
    }
    if let Some(Other::Thesis {
        seconds,
        machines: true,
    }) = options.other
    {
        return measure_the_machines(Duration::from_secs(seconds), json);
    }
    if let Some(measured) = options.other.as_ref().and_then(measure_emulated) {
        let (tables, report) = measured?;
        println!("\n{tables}");
        return write_json(json, &report);
    }
    if let Some(Other::Migration(migration)) = &options.other
        && migration.needs_machines()
    {
        setup::for_kernels()?;
    }
    let memlb = provide(options.tools())?;
    match &options.other {
        Some(Other::Control) => return started::of_the_manager(&memlb, json),
        Some(Other::Load(load)) => return started::of_connections(&memlb, &load.arguments(), json),
        _ => {}
    }
    if !is_root() {
        return Err(restart_as_root(BINARY, &memlb));
    }
    let interrupt = Interrupt::catch()?;
    let directory = tempfile::tempdir().context("make a directory for wrk")?;
    match &options.other {
        Some(Other::Herd) => {
            let rows = herd::measure(&interrupt)?;
            let (text, missed) = herd::text(&rows);
            println!("\n{text}");
            write_json(json, &rows)?;
            ensure!(missed == 0, "{missed} figures are missed");
            Ok(())
        }
        Some(Other::Migration(migration)) => {
            let measured = migration::measure(migration, Machine::describe(&memlb), &interrupt)?;
            println!("{}", migration::text(&measured));
            write_json(json, &measured)?;
            write_svg(migration.svg.as_deref(), || migration::draw(&measured))
        }
        Some(Other::Sync) => {
            let compared = sync::measure()?;
            println!("\n{compared}");
            write_json(json, &compared)
        }
        Some(Other::Pair { seconds, .. }) => {
            let outcome = pair::measure(Duration::from_secs(*seconds), &interrupt)?;
            println!("\n{outcome}");
            write_json(json, &outcome)?;
            let missed = outcome.missed();
            ensure!(missed == 0, "{missed} figures are missed");
            Ok(())
        }
        Some(Other::Thesis { seconds, .. }) => {
            let duration = Duration::from_secs(*seconds);
            let measured = thesis::measure(directory.path(), duration, &interrupt)?;
            println!("\n{}{}", thesis::table(&measured), thesis::NOTE);
            write_json(json, &measured)
        }
        _ => compare(options, &memlb, directory.path(), &interrupt),
    }
}

/// Repeats the experiment of 2018 on the machines that are up.
fn measure_the_machines(duration: Duration, json: Option<&Path>) -> Result<()> {
    provide_tools(WRK)?;
    run_as_root()?;
    let interrupt = Interrupt::catch()?;
    let directory = tempfile::tempdir().context("make a directory for wrk")?;
    let measured = thesis::measure_machines(directory.path(), duration, &interrupt)?;
    println!("\n{}{}", thesis::table(&measured), thesis::NOTE_OF_MACHINES);
    write_json(json, &measured)
}

/// Runs a benchmark of the emulated machine; `None` for others. Returns the tables and the report.
fn measure_emulated(benchmark: &Other) -> Option<Result<(String, Value)>> {
    let build = |tools: &[Tool]| -> Result<PathBuf> {
        setup::for_kernels()?;
        provide_tools(tools)?;
        build::memlb()
    };
    Some(match benchmark {
        Other::Packet { rounds, .. } => {
            build(&[]).and_then(|memlb| instructions::of_packets(&memlb, rounds.unwrap_or(3)))
        }
        Other::Ipvs { rounds, seconds } => {
            build(IPVS_TOOLS).and_then(|memlb| ipvs::compare(&memlb, *rounds, *seconds))
        }
        Other::Load(load) if load.emulated => {
            build(load::EMULATED_TOOLS).and_then(|memlb| load.measure_emulated(&memlb))
        }
        Other::Pair { emulated: true, .. } => {
            build(sync::TOOLS).and_then(|memlb| sync::compare(&memlb))
        }
        _ => return None,
    })
}

impl Options {
    /// Returns the tools of the benchmark, besides those of the lab.
    fn tools(&self) -> &'static [Tool] {
        match self.other {
            Some(Other::Control | Other::Herd) => &[],
            Some(Other::Load(_)) => load::TOOLS,
            Some(Other::Migration(_)) => migration::TOOLS,
            Some(Other::Pair { .. }) => pair::TOOLS,
            _ => TOOLS,
        }
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let svg = match &self.other {
            Some(Other::Migration(migration)) => &migration.svg,
            _ => &self.comparison.svg,
        };
        self.json.iter().chain(svg)
    }
}

impl ComparisonOptions {
    fn wants(&self, item: Item) -> bool {
        self.only.is_empty() || self.only.contains(&item)
    }

    fn rows(&self) -> Vec<Workload> {
        let rows = [
            (Item::KeptAlive, Workload::KeptAlive),
            (Item::OneEach, Workload::OneEach),
            (Item::Bulk, Workload::Bulk),
        ];
        let wanted = rows.into_iter().filter(|(item, _)| self.wants(*item));
        wanted.map(|(_, row)| row).collect()
    }

    fn contenders(&self) -> Vec<Contender> {
        if !self.with.is_empty() {
            return self.with.clone();
        }
        if self.rows().is_empty() {
            // The other figures need these contenders only.
            let others: &[Contender] = match self.wants(Item::Processor) {
                true => &processor::COMPARED,
                false => &[Contender::MemlbTc, Contender::Nginx2018],
            };
            return others.into();
        }
        let usual = Contender::value_variants().iter();
        usual
            .copied()
            .filter(|contender| *contender != Contender::Ipvs)
            .collect()
    }
}

/// Installs the tools, and builds memlb unless it is given. Returns its path.
fn provide(tools: &[Tool]) -> Result<PathBuf> {
    if let Some(given) = env::var_os(BINARY) {
        return Ok(given.into());
    }
    setup::for_the_lab()?;
    provide_tools(tools)?;
    build::memlb()
}

fn compare(all: &Options, memlb: &Path, directory: &Path, interrupt: &Interrupt) -> Result<()> {
    let options = &all.comparison;
    let machine = Machine::describe(memlb);
    let started = ProcessorTime::now();
    let wrk = Wrk::prepare(directory)?;
    let contenders = options.contenders();
    print_message(format!("setting up {} laboratories", contenders.len()));
    let mut laboratories = Vec::new();
    for contender in &contenders {
        interrupt.check()?;
        laboratories.push(Laboratory::build(*contender)?);
    }
    let mut attachment = Vec::new();
    for laboratory in &laboratories {
        if let Some(interfaces) = laboratory.attachment()? {
            attachment.push((laboratory.contender, interfaces));
        }
    }
    let samples = Samples::measure(
        &laboratories,
        &options.rows(),
        options.rounds.into(),
        Duration::from_secs(options.seconds),
        &wrk,
        interrupt,
    )?;
    let of = |contender| laboratories.iter().find(|one| one.contender == contender);
    let mut changes = Vec::new();
    if options.wants(Item::Changes) {
        if let Some(laboratory) = of(Contender::MemlbTc) {
            let outcome = changes::of_memlb(laboratory, &wrk, directory, interrupt)?;
            changes.push((laboratory.contender, outcome));
        }
        if let Some(laboratory) = of(Contender::Nginx2018) {
            let outcome = changes::of_2018(laboratory, &wrk, directory, interrupt)?;
            changes.push((laboratory.contender, outcome));
        }
    }
    let outage = match of(Contender::MemlbTc) {
        Some(laboratory) if options.wants(Item::Outage) => Some(outage::measure(
            laboratory,
            options.rounds.into(),
            interrupt,
        )?),
        _ => None,
    };
    let processor = match options.wants(Item::Processor) {
        true => processor::measure(
            &laboratories,
            options.rounds.into(),
            Duration::from_secs(options.seconds),
            &wrk,
            interrupt,
        )?,
        false => Vec::new(),
    };
    let report = Report {
        machine,
        rounds: options.rounds.into(),
        seconds: options.seconds,
        attachment,
        medians: report::medians(&samples, &contenders),
        expectations: expectation::compare(&samples),
        contenders,
        outage,
        changes,
        processor,
        samples,
        stolen_percent: started.stolen_percent_since(),
    };
    println!("{}", report.text());
    write_json(all.json.as_deref(), &report)?;
    write_svg(options.svg.as_deref(), || picture::draw(&report))
}

fn write_svg(file: Option<&Path>, draw: impl FnOnce() -> String) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    fs::write(file, draw()).with_context(|| format!("write {}", file.display()))
}

fn write_json(file: Option<&Path>, report: &impl Serialize) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))
}
