//! The pins of the maps, put back should somebody remove them: whoever reads the maps looks there, and
//! so does the next manager, which would begin without a flow.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use tracing::{error, warn};

use super::{Happening, Manager};
use crate::core::Severity;

/// Every pinned map, held beside its pin.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    maps: Vec<(String, MapData)>,
    failing: bool,
}

impl Pins {
    /// Takes hold of all maps that are pinned in `directory`.
    ///
    /// # Errors
    ///
    /// Names the pin that cannot be opened.
    pub fn hold(directory: &Path) -> Result<Self> {
        let mut maps = Vec::new();
        let entries = fs::read_dir(directory);
        for entry in entries.with_context(|| format!("list {}", directory.display()))? {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            // The links have a directory of their own.
            if entry.path().is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let map = MapData::from_pin(entry.path());
                let map = map.with_context(|| format!("open {}", entry.path().display()))?;
                maps.push((name, map));
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            maps,
            failing: false,
        })
    }

    /// Pins again what is not pinned any more, and returns what that was.
    fn put_back(&self) -> Result<Vec<&str>> {
        let mut missing = Vec::new();
        for (map, data) in &self.maps {
            let path = self.directory.join(map);
            if path.exists() {
                continue;
            }
            fs::create_dir_all(&self.directory)
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(data.pin(&path)?))
                .with_context(|| format!("pin {} again", path.display()))?;
            missing.push(map.as_str());
        }
        Ok(missing)
    }
}

impl Manager {
    pub(super) fn mend_pins(&mut self) {
        match self.pins.put_back() {
            Ok(maps) if maps.is_empty() => self.pins.failing = false,
            Ok(maps) => {
                let message = format!(
                    "somebody removed the pins of {} from {}: they are back; `memlb unload` removes \
                     all that is memlb's",
                    maps.join(", "),
                    self.pins.directory.display()
                );
                warn!("{message}");
                let event = Happening::PinsRestored { maps: &maps };
                self.log.publish(Severity::Warn, message, &event);
            }
            Err(error) => {
                if !self.pins.failing {
                    error!("{error:#}; trying again every few seconds");
                }
                self.pins.failing = true;
            }
        }
    }
}
