//! The version of the running kernel.

use std::{fmt, fs, str::FromStr};

use anyhow::{Context, Result};

/// A kernel's major and minor version, such as 6.12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub major: u32,
    pub minor: u32,
}

impl Series {
    /// # Errors
    /// When the release cannot be read.
    pub fn running() -> Result<Self> {
        let release = "/proc/sys/kernel/osrelease";
        fs::read_to_string(release)
            .with_context(|| format!("read {release}"))?
            .parse()
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    /// Parses the beginning of a release, such as `6.1.0-56-cloud-amd64`.
    fn from_str(release: &str) -> Result<Self> {
        let mut numbers = release
            .trim()
            .split(|it: char| !it.is_ascii_digit())
            .map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self { major, minor }),
            _ => anyhow::bail!("not the version of a kernel: {release:?}"),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn reads_the_releases_of_kernels() {
        let series = |major, minor| Some(Series { major, minor });
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", series(6, 1)),
            ("6.12.117+deb12-cloud-amd64\n", series(6, 12)),
            ("6.18-rc1", series(6, 18)),
            ("6", None),
            ("next-6.1", None),
        ] {
            assert_eq!(release.parse().ok(), expected, "{release}");
        }
    }

    #[test]
    fn sorts_by_age() {
        let read = |text: &str| text.parse::<Series>().ok();
        assert!(read("6.12") > read("6.6") && read("6.6") > read("5.17"));
    }
}
