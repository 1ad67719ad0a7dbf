//! The rules of `[heartbeats]`.

use std::path::PathBuf;

use super::reader::{Reader, Setting};
use crate::config::Heartbeats;
use crate::config::error::ProblemKind;
use crate::config::file::HeartbeatsTable;
use crate::heartbeat::Authentication;

pub(super) fn check(
    reader: &mut Reader<'_>,
    table: HeartbeatsTable,
    legacy_heartbeats: bool,
) -> Heartbeats {
    let default = Heartbeats::default();
    let setting = Setting::file(table.authentication);
    let place = reader.place_of("heartbeats.authentication", &setting);
    let modes = [
        Authentication::Off,
        Authentication::Permissive,
        Authentication::Enforce,
    ];
    let authentication = reader
        .choice(
            "heartbeats.authentication",
            setting,
            &modes.map(|mode| (mode.name(), mode)),
            &[],
        )
        .unwrap_or(default.authentication);
    if authentication == Authentication::Enforce && legacy_heartbeats {
        reader.refuse(
            &place,
            ProblemKind::LegacyUnsigned,
            "2018 heartbeats cannot be signed, and legacy_heartbeats is on",
            "authentication = \"permissive\" while 2018 workers are left",
            "replace the last 2018 worker, set legacy_heartbeats = false, then enforce",
        );
    }
    let setting = Setting::spanned(table.keys, PathBuf::from);
    let (keys, place) = reader.take("heartbeats.keys", setting);
    let keys = keys.unwrap_or(default.keys);
    reader.absolute(
        &keys,
        &place,
        "a directory of key files, or a key file, as /etc/memlb/keys",
    );
    Heartbeats {
        authentication,
        keys,
    }
}
