//! Problems on a worker's host, apart from the typical ones.

use std::{fs, os::unix::fs::PermissionsExt};

use memlb_tests::{Cluster, root_test};

use crate::health::worker;

#[root_test]
fn a_key_that_others_can_read() {
    let cluster = Cluster::with(|it| it.authentication = Some("enforce"));
    let key = cluster.key_file(0).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let diagnosis = worker(&cluster, 0);
    let found = diagnosis.problem("key", "can be used by others than its owner (mode 0644)");
    found.assert_remedy(&format!("chmod 600 {}", key.display()));
    found.run_remedies(&cluster.topology.workers[0]);
    worker(&cluster, 0).assert_healthy();
}
