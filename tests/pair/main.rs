//! Two managers with a real keepalived: the effects on clients of hand-overs, crashes, returns and partial failures.
//!
//! Each test has one system for a sequence of events. Connections of all kinds live through all of them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod chaos;
mod faults;
mod scripts;
mod testbed;

use memlb_tests::{pair::StreamCounts, root_test};

use self::testbed::{BUSY, CALM, Testbed};

const STREAMS: StreamCounts = StreamCounts {
    downloads: 50,
    uploads: 10,
    dialogues: 5,
};
const FEW: StreamCounts = StreamCounts {
    downloads: 10,
    uploads: 5,
    dialogues: 2,
};
const HANDOVERS: u32 = 20;
const SYNS: u32 = 500_000;

#[root_test]
fn connections_continue_on_the_other_machine() {
    let mut testbed = Testbed::start("tc", 2_000, STREAMS);
    testbed.hands_over(HANDOVERS);
    testbed.finishes();
    testbed.survives_the_failure_of_a_machine(BUSY);
    testbed.takes_it_back();
}

#[root_test]
fn connections_continue_on_the_other_machine_with_xdp() {
    let mut testbed = Testbed::start("xdp", 200, FEW);
    testbed.hands_over(2);
    testbed.finishes();
    testbed.survives_the_failure_of_a_machine(CALM);
    testbed.takes_it_back();
}

#[root_test]
fn connections_continue_when_parts_of_the_pair_stop() {
    let mut testbed = Testbed::start("tc", 300, FEW);
    testbed.serves_during(
        CALM,
        &[
            ("a drained worker", Testbed::keeps_a_worker_drained),
            ("the router dies", Testbed::survives_the_failure_of_a_router),
            (
                "a controller is killed",
                Testbed::survives_the_death_of_its_controllers,
            ),
            (
                "keepalived is killed",
                Testbed::survives_the_death_of_keepalived,
            ),
            (
                "both are killed",
                Testbed::survives_the_death_of_both_programs,
            ),
            ("two are active", Testbed::recovers_from_two_active_machines),
            ("other peers", Testbed::changes_its_peers),
            ("another layout", Testbed::is_upgraded_to_another_layout),
        ],
    );
    testbed.waits_for_a_peer_that_reads_nothing();
    testbed.reports_no_half_open_connection(SYNS);
    testbed.finishes();
}
