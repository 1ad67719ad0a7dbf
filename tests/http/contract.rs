//! The API conforms to its OpenAPI description for all requests.

use std::{env, ffi::OsString, fs, path::Path, time::Duration};

use memlb_tests::{ClusterOptions, Process, root_test};

use super::{ORIGIN, start};

/// Names the `schemathesis` program; else it is the one in the path.
const SCHEMATHESIS: &str = "MEMLB_SCHEMATHESIS";

#[root_test]
fn schemathesis_finds_no_violation() {
    let cluster = start(ClusterOptions::default());
    let program = env::var_os(SCHEMATHESIS).unwrap_or_else(|| OsString::from("schemathesis"));
    let directory = cluster.paths.directory.join("schemathesis");
    fs::create_dir(&directory).unwrap();
    let mut command = cluster.topology.manager.command(Path::new(&program));
    command
        .current_dir(&directory)
        .env("HOME", &directory)
        .args(["run", &format!("{ORIGIN}/api/v1/openapi.json")])
        .args(["--checks", "all", "--seed", "1", "--max-time", "15"])
        .args(["--phases", "examples,coverage,fuzzing"])
        // It does not end, so that nothing could be said of its answer.
        .args(["--exclude-path", "/api/v1/events/stream"])
        .args(["--request-timeout", "5", "--no-color"]);
    let log = cluster.paths.directory.join("schemathesis.log");
    let mut run = Process::start("schemathesis", &mut command, &log).unwrap();
    let ended = run.wait(Duration::from_secs(90)).unwrap();
    assert!(ended.success(), "{}", run.log());
    // All but the stream and the description itself, and none of them in vain.
    assert!(run.log().contains("Tested: 5"), "{}", run.log());
    assert!(!run.log().contains("Missing test data"), "{}", run.log());
}
