//! `memlb import`: translates a configuration of nginx, HAProxy or keepalived.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::Context;
use memlb::{
    addresses,
    config::{Config, Overrides},
    import::{Format, Options, import},
};

use super::{
    error::{CliError, CliResult},
    output::{print, print_error, print_json, print_warning},
    source::kernel_ports,
    terminal::{Output, Paint},
};

/// Translate a configuration of nginx, HAProxy or keepalived
///
/// Writes a memlb.toml in which each line names its original line. Lists what memlb does not do (TLS, routing by path
/// or host, cookies, limits of requests), and what to do instead.
#[derive(clap::Args)]
pub struct Args {
    /// nginx.conf, haproxy.cfg or keepalived.conf
    file: PathBuf,

    /// The program that the file is for [default: the content decides]
    #[arg(long = "from", value_name = "PROGRAM", value_enum)]
    format: Option<Format>,

    /// The address of services that listen at every address [default: this machine's first one]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,

    /// The interface that clients use [default: the one with the services' addresses]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// Write to this file, which must not exist [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> CliResult {
    let machine = addresses::own()?;
    let options = Options {
        format: args.format,
        address: args.address,
        interface: args.interface.clone(),
    };
    let imported =
        import(&args.file, &options, &machine).map_err(|error| CliError::Usage(error.into()))?;
    if let Some(path) = &args.output {
        write_new(path, &imported.toml)?;
    }
    if args.json {
        return print_json(&imported);
    }
    if args.output.is_none() {
        print(&imported.toml);
    }
    for note in &imported.notes {
        print_warning(note);
    }
    let label = Output::stderr().paint("on the worker:", Paint::Bold);
    for agent in &imported.agents {
        // Not wrapped, so that the command can be copied.
        print_error(&format!("{label} {agent}"));
    }
    // Reports what must be corrected by hand.
    let name = args.output.as_ref().unwrap_or(&args.file).to_string_lossy();
    Config::parse(&imported.toml, &name, &Overrides::default(), kernel_ports())?;
    Ok(())
}

fn write_new(path: &PathBuf, text: &str) -> CliResult {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CliError::usage(format!(
            "{} exists: name another file with --output, or remove it",
            path.display()
        )),
        _ => anyhow::Error::new(error)
            .context(format!("create {}", path.display()))
            .into(),
    })?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    Ok(())
}
