//! Reads memory and memory pressure for an agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use lb_core::Pressure;
use procfs::{Current, FromRead, MemoryPressure};

use super::cgroup::Cgroup;
use crate::heartbeat::{MemoryReport, PressureReport};

const MEMINFO: &str = "/proc/meminfo";
const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// Files that replace the kernel's figures of this machine.
#[derive(Debug, Clone, Default)]
pub struct MemorySources {
    /// A file in the format of `/proc/meminfo`, which replaces it. Without `cgroup` and `pressure_file`, there are no
    /// cgroup and no pressure then.
    pub memory_file: Option<PathBuf>,
    /// A file in the format of `/proc/pressure/memory`, which replaces it.
    pub pressure_file: Option<PathBuf>,
    /// The cgroup whose limit counts, instead of the agent's own.
    pub cgroup: Option<PathBuf>,
}

/// Reads the memory figures once.
///
/// # Errors
///
/// Says what `/proc/meminfo` lacks.
pub fn memory_now(sources: MemorySources) -> Result<MemoryReport> {
    MemoryReader::open(sources)?.read()
}

/// Reads the memory figures of heartbeats.
#[derive(Debug)]
pub(super) struct MemoryReader {
    sources: MemorySources,
    cgroup: Option<Cgroup>,
}

impl MemoryReader {
    /// Opens the sources that this machine has.
    ///
    /// # Errors
    ///
    /// Says which configured source cannot be read.
    pub fn open(sources: MemorySources) -> Result<Self> {
        let cgroup = match (&sources.cgroup, &sources.memory_file) {
            (Some(directory), _) => Some(Cgroup::at(directory)?),
            (None, Some(_)) => None,
            (None, None) => Cgroup::own(),
        };
        let reader = Self { sources, cgroup };
        reader.read()?;
        if let Some(path) = &reader.sources.pressure_file {
            read_pressure(path).with_context(|| {
                format!(
                    "read --pressure-file {} in the format of /proc/pressure/memory",
                    path.display()
                )
            })?;
        }
        Ok(reader)
    }

    /// Reads available and total memory, the tightest limit, and the pressure.
    ///
    /// # Errors
    ///
    /// Says what `/proc/meminfo`, or the file in its place, lacks.
    pub fn read(&self) -> Result<MemoryReport> {
        let (available_bytes, total_bytes) = host(self.sources.memory_file.as_deref())?;
        let limited = self.cgroup.as_ref().and_then(Cgroup::tightest);
        let pressure = match (&self.sources.pressure_file, &limited) {
            (Some(path), _) => read_pressure(path),
            (None, Some((directory, _))) => read_pressure(&directory.join("memory.pressure")),
            (None, None) if self.sources.memory_file.is_some() => None,
            (None, None) => MemoryPressure::current().ok().map(report),
        };
        Ok(MemoryReport {
            available_bytes,
            total_bytes,
            cgroup: limited.map(|(_, memory)| memory),
            stale_ms: None,
            pressure,
        })
    }
}

/// Reads available and total memory of the host, or of a file in the format of `/proc/meminfo`. Sandboxes show few of
/// its lines, so that the agent needs only these two.
fn host(file: Option<&Path>) -> Result<(u64, u64)> {
    let path = file.unwrap_or(Path::new(MEMINFO));
    let text = fs::read_to_string(path).with_context(|| match file {
        Some(path) => format!("read --memory-file {}", path.display()),
        None => format!("read {MEMINFO}"),
    })?;
    let available = line(&text, "MemAvailable:").or_else(|| estimate(&text, low_watermark()));
    match (available, line(&text, "MemTotal:")) {
        (Some(available), Some(total)) if total > 0 => Ok((available.min(total), total)),
        _ => bail!(
            "{} needs the lines \"MemTotal: N kB\" and \"MemAvailable: N kB\" (before Linux 3.14: \
             MemFree, Active(file) and Inactive(file))",
            path.display()
        ),
    }
}

/// Estimates `MemAvailable` as Linux does since 3.14 (commit 34e431b0ae39): free memory less the low watermark, and
/// page cache and reclaimable slab less the smaller of half of each and the low watermark.
fn estimate(text: &str, low_watermark: u64) -> Option<u64> {
    let beyond = |cache: u64| cache - (cache / 2).min(low_watermark);
    let free = line(text, "MemFree:")?;
    let page_cache = line(text, "Active(file):")?.checked_add(line(text, "Inactive(file):")?)?;
    let slab = line(text, "SReclaimable:").unwrap_or(0);
    let available = free
        .checked_add(beyond(page_cache))?
        .checked_add(beyond(slab))?;
    Some(available.saturating_sub(low_watermark))
}

/// Returns the sum of the low watermarks of all zones, 5/4 of `vm.min_free_kbytes`; 0 if that cannot be read.
fn low_watermark() -> u64 {
    let kibibytes = fs::read_to_string(MIN_FREE);
    let kibibytes = kibibytes.ok().and_then(|it| it.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024) / 4 * 5
}

/// Returns the bytes of a line such as `MemTotal:  716800 kB`.
fn line(text: &str, key: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(key))?;
    let mut words = rest.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        None => Some(number),
        Some("kB") => number.checked_mul(1024),
        Some(_) => None,
    }
}

/// Reads pressure stall information, if the kernel has it and it is switched on.
fn read_pressure(path: &Path) -> Option<PressureReport> {
    MemoryPressure::from_file(path).ok().map(report)
}

fn report(pressure: MemoryPressure) -> PressureReport {
    let share = |percent| Pressure(hundredths(percent).min(u32::from(Pressure::MOST.0)) as u16);
    PressureReport {
        some_avg10: share(pressure.some.avg10),
        full_avg10: share(pressure.full.avg10),
    }
}

fn hundredths(number: f32) -> u32 {
    (f64::from(number) * 100.0).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(path: &Path) -> Result<MemoryReport> {
        MemoryReader::open(MemorySources {
            memory_file: Some(path.to_owned()),
            ..MemorySources::default()
        })?
        .read()
    }

    #[test]
    fn reads_this_machine() {
        let reader = MemoryReader::open(MemorySources::default()).unwrap();
        let memory = reader.read().unwrap();
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes);
        let measured = fs::read_to_string("/proc/pressure/memory").is_ok();
        assert_eq!(memory.pressure.is_some(), measured);
    }

    #[test]
    fn reads_a_file_in_the_form_of_meminfo() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meminfo");
        fs::write(&path, "MemTotal:  716800 kB\nMemAvailable:   403456 kB\n").unwrap();
        let memory = of_file(&path).unwrap();
        assert_eq!(memory.total_bytes, 700 << 20);
        assert_eq!(memory.available_bytes, 394 << 20);
        assert_eq!((memory.cgroup, memory.pressure), (None, None));
        fs::write(&path, "MemTotal: many kB\n").unwrap();
        assert!(of_file(&path).is_err());
    }

    #[test]
    fn reads_what_sandboxes_and_old_kernels_show() {
        let gvisor = "MemTotal:         2097152 kB\nMemFree:          1048576 kB\n\
                      MemAvailable:     1048577 kB\nBuffers:                0 kB\n\
                      Cached:              1000 kB\nSwapCache:              0 kB\n";
        let ish = "MemTotal:       68719476 kB\nMemFree:         1210925 kB\n\
                   MemAvailable:    3060908 kB\nMemShared:       1210925 kB\nWireCount: 4128555 kB\n";
        let old = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 1 kB\nCached: 500 kB\n\
                   Active(file): 300 kB\nInactive(file): 100 kB\nSReclaimable: 20 kB\n";
        assert_eq!(line(gvisor, "MemAvailable:"), Some(1_048_577 << 10));
        assert_eq!(line(ish, "MemTotal:"), Some(68_719_476 << 10));
        assert_eq!(line(old, "MemAvailable:"), None);
        // 100 + (400 - 50) + (20 - 10) - 50; of a cache smaller than the watermark half counts.
        assert_eq!(estimate(old, 50 << 10), Some(410 << 10));
        assert_eq!(estimate(old, 1_000 << 10), Some(0));
        assert_eq!(estimate("MemTotal: 1000 kB\nMemFree: 100 kB\n", 0), None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meminfo");
        for shown in [gvisor, ish, old] {
            fs::write(&path, shown).unwrap();
            let memory = of_file(&path).unwrap();
            assert!(memory.available_bytes <= memory.total_bytes);
        }
        for broken in ["", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: 5 kB"] {
            fs::write(&path, broken).unwrap();
            assert!(of_file(&path).is_err(), "{broken}");
        }
    }

    #[test]
    fn reads_pressure_and_a_cgroup_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(
            at("meminfo"),
            "MemTotal: 716800 kB\nMemAvailable: 403456 kB\n",
        )
        .unwrap();
        fs::write(
            at("memory"),
            "some avg10=12.34 avg60=1.00 avg300=0.50 total=1234\n\
             full avg10=100.00 avg60=1.00 avg300=0.50 total=1234\n",
        )
        .unwrap();
        fs::write(at("memory.max"), "1048576\n").unwrap();
        fs::write(at("memory.current"), "524288\n").unwrap();
        fs::write(at("memory.stat"), "anon 1\ninactive_file 4096\n").unwrap();
        let sources = MemorySources {
            memory_file: Some(at("meminfo")),
            pressure_file: Some(at("memory")),
            cgroup: Some(directory.path().to_owned()),
        };
        let memory = MemoryReader::open(sources.clone()).unwrap().read().unwrap();
        let pressure = memory.pressure.unwrap();
        assert_eq!(pressure.some_avg10, Pressure(1234));
        assert_eq!(pressure.full_avg10, Pressure::MOST);
        assert_eq!(memory.effective().available_bytes, 524_288 + 4096);
        fs::write(at("memory"), "nonsense").unwrap();
        assert!(MemoryReader::open(sources).is_err());
    }
}
