//! The parsed output of doctor.

use std::process::Command;

use memlb_tests::{Cluster, Namespace, command::line};
use serde_json::Value;

/// What doctor said, and how it ended.
#[derive(Debug)]
pub struct Diagnosis {
    pub status: Option<i32>,
    pub findings: Vec<Finding>,
    said: String,
}

#[derive(Debug, Clone, serde::Deserialize)]
pub struct Finding {
    pub severity: String,
    pub check: String,
    pub found: String,
    #[serde(default)]
    pub remedy: String,
}

/// Runs a doctor's command line.
pub fn diagnose(mut command: Command) -> Diagnosis {
    let output = command.arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    let value: Value =
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{}: {error}", line(&command)));
    let findings: Vec<Finding> = serde_json::from_value(value["findings"].clone()).unwrap();
    let problems = findings
        .iter()
        .filter(|it| it.severity == "problem")
        .count();
    assert_eq!(value["problems"], problems);
    let status = output.status.code();
    assert_eq!(status, Some(i32::from(problems > 0)), "{said}");
    Diagnosis {
        status,
        findings,
        said,
    }
}

/// Examines the manager's host.
pub fn manager(cluster: &Cluster) -> Diagnosis {
    diagnose(cluster.configured("doctor"))
}

impl Diagnosis {
    pub fn assert_healthy(&self) {
        assert_eq!(self.status, Some(0), "{}", self.said);
    }

    /// Returns the problem that is told in these words.
    pub fn problem(&self, check: &str, says: &str) -> &Finding {
        self.finding("problem", check, says)
    }

    pub fn finding(&self, severity: &str, check: &str, says: &str) -> &Finding {
        let mut findings = self.findings.iter();
        findings
            .find(|it| it.severity == severity && it.check == check && it.found.contains(says))
            .unwrap_or_else(|| panic!("no {severity} of {check} says {says:?}: {}", self.said))
    }
}

impl Finding {
    pub fn assert_remedy(&self, says: &str) {
        assert!(self.remedy.contains(says), "not {says:?}: {self:?}");
    }

    /// Types the command it gives, as a person would who leaves the explanation behind it away.
    pub fn run_remedies(&self, at: &Namespace) {
        let command = self.remedy.split("    (").next().unwrap();
        at.run("sh", &["-ec", command]).unwrap();
    }
}
