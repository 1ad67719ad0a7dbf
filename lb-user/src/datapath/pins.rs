//! The pins of maps and links, put back should somebody remove them: whoever reads the maps looks there, and
//! so does the next manager or agent, which would begin without a flow. A link without a pin ends with the
//! process that holds it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    maps::MapData,
    programs::links::{FdLink, PinnedLink},
};

use super::attach::LINKS;

/// Every pinned map and link, held beside its pin.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    maps: Vec<(String, MapData)>,
    /// By their names in the directory.
    links: BTreeMap<String, PinnedLink>,
}

impl Pins {
    /// Takes hold of all maps and links that are pinned in `directory`.
    ///
    /// # Errors
    ///
    /// Names the pin that cannot be opened.
    pub fn hold(directory: &Path) -> Result<Self> {
        let mut maps = Vec::new();
        for path in files(directory)? {
            let map = MapData::from_pin(&path);
            let map = map.with_context(|| format!("open {}", path.display()))?;
            maps.push((name(&path), map));
        }
        let mut pins = Self {
            directory: directory.to_owned(),
            maps,
            links: BTreeMap::new(),
        };
        pins.hold_links()?;
        Ok(pins)
    }

    /// Takes hold of the links as they are pinned now. A kernel without tcx has none.
    ///
    /// # Errors
    ///
    /// Names the pin that cannot be opened.
    pub fn hold_links(&mut self) -> Result<()> {
        self.links.clear();
        for path in files(&self.directory.join(LINKS))? {
            let link = PinnedLink::from_pin(&path);
            let link = link.with_context(|| format!("open {}", path.display()))?;
            self.links.insert(format!("{LINKS}/{}", name(&path)), link);
        }
        Ok(())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pins again what is not pinned any more, and returns what that was.
    ///
    /// # Errors
    ///
    /// Names what cannot be pinned.
    pub fn restore(&mut self) -> Result<Vec<String>> {
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
            missing.push(map.clone());
        }
        let is_missing = |link: &&String| !self.directory.join(link).exists();
        let links: Vec<String> = self.links.keys().filter(is_missing).cloned().collect();
        for link in links {
            let path = self.directory.join(&link);
            // Made before the link leaves its place: a link that cannot be pinned ends.
            fs::create_dir_all(self.directory.join(LINKS))
                .with_context(|| format!("pin {} again", path.display()))?;
            if let Some(held) = self.links.remove(&link) {
                let pinned = FdLink::from(held).pin(&path);
                let pinned = pinned.with_context(|| format!("pin {} again", path.display()))?;
                self.links.insert(link.clone(), pinned);
                missing.push(link);
            }
        }
        Ok(missing)
    }
}

/// The files of a directory, without those below it.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        if entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
