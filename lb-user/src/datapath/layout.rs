//! Pinned maps, opened only where they have the layout of this version.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData};
use lb_common::maps::{
    DSR_LAYOUT_VERSION, DSR_MAPS, LAYOUT_VERSION, LayoutMismatch, MANAGER_MAPS, MapLayout,
    Settings, dsr_name, name,
};

/// The pins belong to another version of memlb.
#[derive(Debug, thiserror::Error)]
#[error(
    "the maps pinned at {path} have {found}, and this memlb has layout {LAYOUT_VERSION}. Either \
     start the memlb that made them, or remove them (open connections end): memlb unload \
     --pin-path {path}"
)]
pub struct LayoutError {
    pub path: PathBuf,
    /// Such as "layout 4".
    pub found: String,
}

/// Opens a map pinned by a manager, by its name.
///
/// # Errors
///
/// [`LayoutError`] if the map differs from this version's.
pub fn open_map(pin_path: &Path, map: &str) -> Result<MapData> {
    let (data, mismatch) = open(pin_path, map, MANAGER_MAPS)?;
    match mismatch {
        None => Ok(data),
        Some(mismatch) => Err(LayoutError {
            path: pin_path.to_owned(),
            found: format!("a layout of another version ({mismatch})"),
        }
        .into()),
    }
}

/// Opens a pinned map. Also returns how it differs from its layout in `layouts`.
fn open(
    pin_path: &Path,
    map: &str,
    layouts: &[MapLayout],
) -> Result<(MapData, Option<LayoutMismatch>)> {
    let path = pin_path.join(map);
    let data = MapData::from_pin(&path)
        .with_context(|| format!("open the pinned map {}", path.display()))?;
    let info = data
        .info()
        .with_context(|| format!("read the properties of map {map}"))?;
    let layout = layouts
        .iter()
        .find(|layout| layout.name == map)
        .with_context(|| format!("map {map} is not one of memlb's"))?;
    // A type that aya does not know is none of memlb's.
    let kind = info.map_type().map_or(0, |kind| kind as u32);
    let sizes = [info.key_size(), info.value_size()];
    let mismatch = layout.mismatch(kind, sizes, info.max_entries());
    Ok((data, mismatch))
}

/// Checks the version and every map pinned by a manager.
///
/// # Errors
///
/// [`LayoutError`] if any differs from this version's.
pub fn check(pin_path: &Path) -> Result<()> {
    let settings = Map::Array(open_map(pin_path, name::SETTINGS)?);
    let version = Array::<_, Settings>::try_from(settings)?
        .get(&0, 0)
        .context("read map settings")?
        .layout_version;
    // 0: a manager ended between making the map and writing it.
    if version != LAYOUT_VERSION && version != 0 {
        return Err(LayoutError {
            path: pin_path.to_owned(),
            found: format!("layout {version}"),
        }
        .into());
    }
    for MapLayout { name, .. } in MANAGER_MAPS {
        if pin_path.join(name).exists() {
            open_map(pin_path, name)?;
        }
    }
    Ok(())
}

/// Checks the version and every map pinned by an agent.
///
/// # Errors
///
/// Says what differs from this version's.
pub fn check_dsr(pin_path: &Path) -> Result<()> {
    for MapLayout { name, .. } in DSR_MAPS {
        if !pin_path.join(name).exists() {
            continue;
        }
        let (data, mismatch) = open(pin_path, name, DSR_MAPS)?;
        if let Some(mismatch) = mismatch {
            bail!("{mismatch}");
        }
        if *name != dsr_name::VERSION {
            continue;
        }
        let version = Array::<_, u32>::try_from(Map::Array(data))?.get(&0, 0)?;
        // 0: an agent ended between making the map and writing it.
        if version != DSR_LAYOUT_VERSION && version != 0 {
            bail!("its maps have layout {version}, not {DSR_LAYOUT_VERSION}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aya_obj::Object;

    use super::*;
    use crate::datapath::{OBJECT, dsr};

    /// Compares the layouts with the maps in a compiled object. `renamed` is a map's name in the object and
    /// as pinned.
    fn check_object(bytes: &[u8], layouts: &[MapLayout], renamed: Option<(&str, &str)>) {
        let object = Object::parse(bytes).unwrap();
        for layout in layouts {
            let name = match renamed {
                Some((in_object, pinned)) if pinned == layout.name => in_object,
                _ => layout.name,
            };
            let map = object.maps.get(name).unwrap_or_else(|| panic!("{name}"));
            let sizes = [map.key_size(), map.value_size()];
            let mismatch = layout.mismatch(map.map_type(), sizes, map.max_entries());
            assert_eq!(mismatch, None, "update the layout, and its version");
        }
    }

    #[test]
    fn the_compiled_programs_have_the_maps_of_this_layout() {
        let trace = (lb_common::maps::TRACE_SECTION, name::TRACE);
        check_object(OBJECT, MANAGER_MAPS, Some(trace));
        check_object(dsr::OBJECT, DSR_MAPS, None);
    }
}
