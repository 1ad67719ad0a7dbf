//! The client's threads, each in the client's namespace and with a table of open files of its own.

use std::{sync::Barrier, thread, time::Duration};

use anyhow::{Result, anyhow};
use nix::sched::{CloneFlags, unshare};

use super::{
    SHARDS, Tally,
    generator::{Generator, Load},
};
use crate::namespace::Namespace;

/// Opens so many connections a second from `client` for `duration`, and waits until the last has ended.
///
/// # Errors
/// When it is interrupted, or the kernel refuses what it needs.
pub fn open_at_rate(
    client: &Namespace,
    load: Load<'_>,
    per_second: u32,
    duration: Duration,
) -> Result<Tally> {
    client.enter(|| {
        unshare(CloneFlags::CLONE_FILES)?;
        Generator::new(load, 0, 1)?.at_rate(per_second, duration)
    })?
}

/// Opens so many connections from `client` and holds them; then resets all, and opens and holds as many
/// at once again.
///
/// # Errors
/// When it is interrupted, or the kernel refuses what it needs.
pub fn hold_twice(client: &Namespace, load: Load<'_>, connections: u32) -> Result<[Tally; 2]> {
    let barrier = Barrier::new(SHARDS as usize);
    let hold = |shard| -> Result<[Tally; 2]> {
        let part = connections / SHARDS + u32::from(shard < connections % SHARDS);
        let mut generator = unshare(CloneFlags::CLONE_FILES)
            .map_err(Into::into)
            .and_then(|()| Generator::new(load, shard, SHARDS));
        // Each thread passes both barriers, whatever fails: the other waits for it there.
        let first = hold_with(&mut generator, part);
        barrier.wait();
        if let Ok(generator) = &mut generator {
            generator.reset_held();
        }
        barrier.wait();
        let again = hold_with(&mut generator, part);
        generator?;
        Ok([first?, again?])
    };
    client.enter(|| {
        thread::scope(|scope| {
            let hold = &hold;
            let threads: Vec<_> = (0..SHARDS)
                .map(|shard| scope.spawn(move || hold(shard)))
                .collect();
            let mut sum = [Tally::default(), Tally::default()];
            for thread in threads {
                let tallies = thread.join().map_err(|_| anyhow!("a client panicked"))??;
                for (sum, tally) in sum.iter_mut().zip(tallies) {
                    sum.add(tally);
                }
            }
            Ok(sum)
        })
    })?
}

fn hold_with(generator: &mut Result<Generator<'_>>, connections: u32) -> Result<Tally> {
    match generator {
        Ok(generator) => generator.hold(connections),
        Err(_) => Ok(Tally::default()),
    }
}
