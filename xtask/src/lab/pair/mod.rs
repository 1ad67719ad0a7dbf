//! The lab with two managers: keepalived decides which one has the address, and peers know each other's connections.

mod demo;
mod view;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use memlb_tests::pair::{Pair, PairOptions};

use super::{Attach, paths, prepare};
use crate::{setup, workspace::say};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct PairLab {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Where to attach the packet programs
    #[arg(long, value_enum, default_value_t = Attach::Tc)]
    attach: Attach,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Plays a scripted story: planned hand-over, sudden death, return, split brain, with clients that measure
    Demo {
        /// Where to attach the packet programs
        #[arg(long, value_enum, default_value_t = Attach::Tc)]
        attach: Attach,
    },
}

impl PairLab {
    pub(super) fn run(self) -> Result<ExitCode> {
        let attach = match self.verb {
            Some(Verb::Demo { attach }) => attach,
            None => self.attach,
        };
        let interrupt = prepare(setup::for_the_pair)?;
        say(
            "starting the lab: a client, two routers, two managers and two workers, each in its own network namespace",
        );
        let options = PairOptions {
            attach: attach.name().into(),
            peers: true,
            ..PairOptions::default()
        };
        let pair = Pair::start_at(paths(), &options)?;
        if self.verb.is_some() {
            return Ok(match demo::play(pair, &interrupt)? {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            });
        }
        let shown = view::show(&pair, &interrupt);
        say("taking the lab down");
        drop(pair);
        shown.map(|()| ExitCode::SUCCESS)
    }
}
