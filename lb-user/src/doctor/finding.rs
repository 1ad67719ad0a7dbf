//! The finding of a check: its severity, what was found, and the remedy.

use serde::Serialize;

lb_common::named_enum! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Severity {
        Ok = "ok",
        /// It works, but perhaps not as intended, or not for long.
        Warning = "warning",
        /// Something does not work, or will not.
        Problem = "problem",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The name of the check: `kernel`, `interface`, `worker`, …
    pub check: &'static str,
    pub found: String,
    /// The command that repairs it, or what to do if no command can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            check,
            found: found.into(),
            remedy: None,
        }
    }

    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    pub fn problem(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Problem,
            ..Self::warning(check, found, remedy)
        }
    }
}

#[cfg(test)]
impl Finding {
    /// Asserts the severity, and what the finding and its remedy contain.
    #[track_caller]
    pub fn assert(&self, severity: Severity, found: &str, remedy: &str) {
        assert_eq!(self.severity, severity, "{self:?}");
        assert!(self.found.contains(found), "{self:?}");
        let given = self.remedy.as_deref().unwrap_or_default();
        assert!(given.contains(remedy), "{self:?}");
    }
}

/// All findings of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    pub problems: usize,
    pub warnings: usize,
    pub findings: Vec<Finding>,
}

impl From<Vec<Finding>> for Diagnosis {
    fn from(findings: Vec<Finding>) -> Self {
        let count = |severity| findings.iter().filter(|it| it.severity == severity).count();
        Self {
            problems: count(Severity::Problem),
            warnings: count(Severity::Warning),
            findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_problems_and_warnings() {
        let diagnosis = Diagnosis::from(vec![
            Finding::ok("kernel", "Linux 6.18"),
            Finding::problem("interface", "eth1 is down", "ip link set eth1 up"),
        ]);
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["findings"][1]["severity"], "problem");
        assert_eq!(json["findings"][1]["remedy"], "ip link set eth1 up");
        assert!(json["findings"][0].get("remedy").is_none());
        assert_eq!(json["problems"], 1);
    }
}
