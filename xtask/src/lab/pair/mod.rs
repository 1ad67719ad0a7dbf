//! The lab with two managers: keepalived assigns the address to one of them, and the two are peers.

mod demo;
mod view;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use memlb_tests::pair::{Pair, PairOptions};

use super::preparation::{ATTACH, paths, prepare};
use crate::{setup, workspace::print_message};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct PairLab {
    #[command(subcommand)]
    verb: Option<PairVerb>,
    /// Where to attach the packet programs
    #[arg(long, value_parser = ATTACH, default_value = "tc")]
    attach: String,
}

#[derive(Debug, Subcommand)]
enum PairVerb {
    /// Runs a script of failures (handover, crash, return, split brain), and measures their effect on clients
    Demo {
        /// Where to attach the packet programs
        #[arg(long, value_parser = ATTACH, default_value = "tc")]
        attach: String,
    },
}

impl PairLab {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (attach, is_demo) = match self.verb {
            Some(PairVerb::Demo { attach }) => (attach, true),
            None => (self.attach, false),
        };
        let interrupt = prepare(setup::for_the_pair)?;
        print_message(
            "starting the lab: a client, two routers, two managers and two workers, each in its own network namespace",
        );
        let options = PairOptions {
            attach,
            peers: true,
            ..PairOptions::default()
        };
        let pair = Pair::start_at(paths(), &options)?;
        if is_demo {
            return Ok(match demo::run(pair, &interrupt)? {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            });
        }
        let shown = view::show(&pair, &interrupt);
        print_message("removing the lab");
        drop(pair);
        shown.map(|()| ExitCode::SUCCESS)
    }
}
