//! Two managers with a real keepalived: the effects on clients of hand-overs, crashes, returns and partial failures.
//!
//! Each test has one system for a sequence of events. Connections of all kinds live through all of them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod chaos;
mod faults;
mod scene;
mod scripts;

use memlb_tests::{pair::StreamCounts, root_test};

use self::scene::{BUSY, CALM, Scene};

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
    let mut scene = Scene::start("tc", 2_000, STREAMS);
    scene.hands_over(HANDOVERS);
    scene.finishes();
    scene.outlives_a_machine(BUSY);
    scene.takes_it_back();
}

#[root_test]
fn connections_continue_on_the_other_machine_with_xdp() {
    let mut scene = Scene::start("xdp", 200, FEW);
    scene.hands_over(2);
    scene.finishes();
    scene.outlives_a_machine(CALM);
    scene.takes_it_back();
}

#[root_test]
fn connections_continue_when_parts_of_the_pair_stop() {
    let mut scene = Scene::start("tc", 300, FEW);
    scene.serves_during(
        CALM,
        &[
            ("a drained worker", Scene::keeps_a_worker_drained),
            ("the router dies", Scene::outlives_a_router),
            ("a controller is killed", Scene::outlives_its_controllers),
            ("keepalived is killed", Scene::outlives_keepalived),
            ("both are killed", Scene::outlives_both_programs),
            ("two are active", Scene::heals_two_active_machines),
            ("other peers", Scene::changes_its_peers),
            ("another layout", Scene::is_upgraded_to_another_layout),
        ],
    );
    scene.waits_for_a_peer_that_reads_nothing();
    scene.reports_no_half_open_connection(SYNS);
    scene.finishes();
}
