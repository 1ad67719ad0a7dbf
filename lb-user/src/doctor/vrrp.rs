//! Reads keepalived's configuration: which vrrp_instance moves each address, and which file lowers its priority.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

use crate::import::{
    files::matching,
    statement::{Statement, Terminator, parse},
};

/// The most nested includes.
const MAX_INCLUDES: usize = 8;

/// keepalived's instances and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vrrp {
    pub instances: Vec<Instance>,
    /// The instances of each vrrp_sync_group, which move together.
    groups: Vec<BTreeSet<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub addresses: BTreeSet<IpAddr>,
    /// The files whose content changes its priority.
    pub track_files: BTreeSet<PathBuf>,
    /// Whether it ignores a lower priority of the active machine.
    pub has_nopreempt: bool,
}

/// Reads the configuration with its includes and definitions (`$NAME=`); `None` if there is none.
///
/// # Errors
///
/// Names the file that cannot be read, or the place of a missing brace.
pub fn read(path: &Path) -> Result<Option<Vrrp>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut text = ExpandedConfiguration::default();
    text.load(path, 0)?;
    let name: Arc<str> = path.display().to_string().into();
    let statements = parse(&text.expanded, &name, &['!', '#'], Terminator::Newline)?;
    Ok(Some(Vrrp::new(&statements)))
}

impl Vrrp {
    fn new(statements: &[Statement]) -> Self {
        let named = |name: &'static str| statements.iter().filter(move |it| it.name() == name);
        let files: BTreeMap<&str, &str> = ["track_file", "vrrp_track_file"]
            .into_iter()
            .flat_map(named)
            .filter_map(|it| Some((it.argument(0), it.child("file")?.argument(0))))
            .collect();
        let instances = named("vrrp_instance").map(|it| instance(it, &files));
        let groups = named("vrrp_sync_group").map(|group| {
            let members = group.children("group").flat_map(|it| &it.block);
            members.map(|it| it.name().to_owned()).collect()
        });
        Self {
            instances: instances.collect(),
            groups: groups.collect(),
        }
    }

    /// Returns the instance that moves an address.
    pub fn instance_of(&self, address: IpAddr) -> Option<&Instance> {
        let mut instances = self.instances.iter();
        instances.find(|it| it.addresses.contains(&address))
    }

    /// Whether two instances always have the same active machine.
    pub fn move_together(&self, one: &str, other: &str) -> bool {
        let mut groups = self.groups.iter();
        one == other || groups.any(|it| it.contains(one) && it.contains(other))
    }
}

fn instance(statement: &Statement, files: &BTreeMap<&str, &str>) -> Instance {
    let blocks = ["virtual_ipaddress", "virtual_ipaddress_excluded"];
    let lines = blocks
        .into_iter()
        .flat_map(|name| statement.children(name))
        .flat_map(|it| &it.block);
    // A definition has several addresses in one line.
    let words = lines.flat_map(|it| &it.words);
    let address = |word: &String| word.split('/').next()?.parse().ok();
    let tracked = statement.children("track_file").flat_map(|it| &it.block);
    let tracked = tracked.filter_map(|it| files.get(it.name()));
    Instance {
        name: statement.argument(0).to_owned(),
        addresses: words.filter_map(address).collect(),
        track_files: tracked.map(PathBuf::from).collect(),
        has_nopreempt: statement.child("nopreempt").is_some(),
    }
}

/// The text of all files in sequence, with definitions applied.
#[derive(Default)]
struct ExpandedConfiguration {
    expanded: String,
    definitions: BTreeMap<String, String>,
}

impl ExpandedConfiguration {
    fn load(&mut self, path: &Path, depth: usize) -> Result<()> {
        let shown = path.display();
        ensure!(depth < MAX_INCLUDES, "{shown} is included too deep");
        let text = fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let line = line.trim();
            if let Some((name, value)) = definition(line) {
                let mut value = value.to_owned();
                while let Some(kept) = value.strip_suffix('\\') {
                    let next = lines.next().unwrap_or_default().trim();
                    value = format!("{kept}\n{next}");
                }
                let value = self.expand(&value);
                self.definitions.insert(name.to_owned(), value);
            } else if let Some(included) = line.strip_prefix("include ") {
                let included = self.expand(included.trim().trim_matches('"'));
                let directory = path.parent().unwrap_or(Path::new("/"));
                for file in matching(&directory.join(included)) {
                    self.load(&file, depth + 1)?;
                }
            } else {
                let line = self.expand(line);
                self.expanded += &line;
                self.expanded.push('\n');
            }
        }
        Ok(())
    }

    /// Replaces `$NAME` and `${NAME}` by the values of definitions. Longer names come first.
    fn expand(&self, line: &str) -> String {
        let mut text = line.to_owned();
        for (name, value) in self.definitions.iter().rev() {
            text = text.replace(&format!("${{{name}}}"), value);
            text = text.replace(&format!("${name}"), value);
        }
        text
    }
}

/// Splits `$NAME=VALUE`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix('$')?.split_once('=')?;
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
    name.chars().all(is_name).then_some((name, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_definitions_includes_and_groups() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(read(&at("keepalived.conf")).unwrap(), None);
        fs::write(
            at("keepalived.conf"),
            "$ADDRESSES= \\\n  192.0.2.1/32 dev eth1 \\\n  192.0.2.2/32 dev eth2\n$FILE=/run/memlb/vrrp-weight\n\
             include conf.d/*.conf\n",
        )
        .unwrap();
        fs::create_dir(at("conf.d")).unwrap();
        fs::write(
            at("conf.d/pair.conf"),
            "vrrp_track_file memlb {\n file $FILE\n weight 20\n}\n\
             vrrp_instance v4 {\n virtual_ipaddress {\n $ADDRESSES\n }\n track_file {\n memlb\n }\n}\n\
             vrrp_instance v6 {\n nopreempt\n virtual_ipaddress {\n 2001:db8::1/128 dev eth1\n }\n}\n\
             vrrp_sync_group both {\n group {\n v4\n v6\n }\n}\n\
             vrrp_instance other {\n virtual_ipaddress {\n 192.0.2.9\n }\n}\n",
        )
        .unwrap();
        let vrrp = read(&at("keepalived.conf")).unwrap().unwrap();
        let of = |ip: &str| vrrp.instance_of(ip.parse().unwrap()).unwrap();
        assert_eq!(of("192.0.2.1").name, "v4");
        assert_eq!(of("192.0.2.2").name, "v4");
        let tracked = of("192.0.2.1").track_files.iter().next().unwrap();
        assert_eq!(tracked, Path::new("/run/memlb/vrrp-weight"));
        assert!(of("2001:db8::1").has_nopreempt);
        assert!(vrrp.move_together("v4", "v6"));
        assert!(!vrrp.move_together("v4", &of("192.0.2.9").name));
        assert_eq!(vrrp.instance_of("192.0.2.8".parse().unwrap()), None);
        fs::write(at("conf.d/pair.conf"), "vrrp_instance v4 {\n").unwrap();
        assert!(read(&at("keepalived.conf")).is_err());
    }
}
