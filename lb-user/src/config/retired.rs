//! Configuration keys that were renamed or removed: an error says what took their place.

/// The former key, and what to do instead.
const KEYS: &[(&str, &str)] = &[(
    "limits.half_open_flows",
    "remove it: memlb sizes the table of handshakes itself",
)];

/// Returns what to do instead of a former key.
pub(super) fn key(path: &str) -> Option<&'static str> {
    let found = KEYS.iter().find(|(former, _)| *former == path);
    found.map(|(_, instead)| *instead)
}
