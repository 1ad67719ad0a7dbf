//! Restores pins of maps and links that were removed. Readers of the maps and the next manager or agent need them, and
//! a link without a pin ends with its process.

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

use super::bpffs::{self, LINKS, Lock, files};

/// References to every pinned map and link.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    maps: Vec<(String, MapData)>,
    /// By their names in the directory.
    links: BTreeMap<String, PinnedLink>,
    /// The lock of the directory, if it was created again: the lock of the start is that of the removed one.
    lock: Option<Lock>,
}

impl Pins {
    /// Opens all maps and links that are pinned in `directory`.
    ///
    /// # Errors
    ///
    /// Names the pin that cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
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
            lock: None,
        };
        pins.open_links()?;
        Ok(pins)
    }

    /// Opens the links that are pinned now. Kernels without tcx have none.
    ///
    /// # Errors
    ///
    /// Names the pin that cannot be opened.
    pub fn open_links(&mut self) -> Result<()> {
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

    /// Restores missing pins, and returns their names. Mounts the BPF file system, and locks the directory, if they are
    /// gone.
    ///
    /// # Errors
    ///
    /// Names what cannot be pinned.
    pub fn restore(&mut self) -> Result<Vec<String>> {
        if !self.directory.exists() {
            bpffs::ensure(&self.directory)?;
            let remedy = "stop it, and restart this process";
            self.lock = Some(Lock::acquire(
                &self.directory,
                "another memlb process",
                remedy,
            )?);
        }
        let mut missing = Vec::new();
        for (map, data) in &self.maps {
            let path = self.directory.join(map);
            if path.exists() {
                continue;
            }
            let context = || format!("pin {} again", path.display());
            data.pin(&path).with_context(context)?;
            missing.push(map.clone());
        }
        let is_missing = |link: &&String| !self.directory.join(link).exists();
        let links: Vec<String> = self.links.keys().filter(is_missing).cloned().collect();
        for link in links {
            let path = self.directory.join(&link);
            let context = || format!("pin {} again", path.display());
            // Create the directory first: a link that cannot be pinned is lost.
            fs::create_dir_all(self.directory.join(LINKS)).with_context(context)?;
            if let Some(held) = self.links.remove(&link) {
                let pinned = FdLink::from(held).pin(&path).with_context(context)?;
                self.links.insert(link.clone(), pinned);
                missing.push(link);
            }
        }
        Ok(missing)
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
