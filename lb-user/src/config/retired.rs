//! Configuration keys that were renamed or removed. An error names the replacement.

/// The former key, and the remedy.
const KEYS: &[(&str, &str)] = &[(
    "limits.half_open_flows",
    "remove it: memlb sizes the table of handshakes itself",
)];

/// Returns the remedy for a former key.
pub(super) fn key(path: &str) -> Option<&'static str> {
    let found = KEYS.iter().find(|(former, _)| *former == path);
    found.map(|(_, instead)| *instead)
}
