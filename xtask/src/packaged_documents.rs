//! The documents of the package: those of the repository, without links to files that the package does not contain.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// The documents, besides all of `docs`.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "scripts/ha/README.md",
    "scripts/monitoring/README.md",
];

/// Files that the package installs at other paths.
const ELSEWHERE: [(&str, &str); 1] = [("lb-user/memlb.toml", "/etc/memlb/memlb.toml")];

/// Folders that the package contains at the same relative paths.
const BESIDE: [&str; 4] = [
    "docs",
    "scripts/ha",
    "scripts/migration",
    "scripts/monitoring",
];

/// Writes the documents of the repository `root` to `folder`.
pub fn write(root: &Path, folder: &Path) -> Result<()> {
    let documents = documents(root)?;
    for document in &documents {
        let source = root.join(document);
        let text =
            fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
        let text = adapt(&text, document, |target| {
            documents.iter().any(|it| it == target)
                || BESIDE.iter().any(|it| target.starts_with(it)) && root.join(target).exists()
        });
        let file = folder.join(document);
        let parent = file.parent().context("a document has a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut documents: Vec<PathBuf> = DOCUMENTS.iter().map(PathBuf::from).collect();
    let docs = root.join("docs");
    for entry in fs::read_dir(&docs).with_context(|| format!("list {}", docs.display()))? {
        let name = entry?.file_name();
        if Path::new(&name).extension().is_some_and(|it| it == "md") {
            documents.push(Path::new("docs").join(name));
        }
    }
    ensure!(documents.len() > DOCUMENTS.len(), "docs has no document");
    Ok(documents)
}

/// Replaces links of a document to files outside of the package by their text.
fn adapt(text: &str, document: &Path, is_packaged: impl Fn(&Path) -> bool) -> String {
    let mut adapted = String::new();
    let mut rest = text;
    while let Some(position) = rest.find("](") {
        let (before, after) = rest.split_at(position);
        let (Some(open), Some(close)) = (before.rfind('['), after.find(')')) else {
            adapted.push_str(&rest[..position + 2]);
            rest = &rest[position + 2..];
            continue;
        };
        let (label, target) = (&before[open + 1..], after[2..close].trim());
        adapted.push_str(&before[..open]);
        match packaged_link(target, document, &is_packaged) {
            Some(link) => adapted += &format!("[{label}]({link})"),
            None => adapted.push_str(label),
        }
        rest = &after[close + 1..];
    }
    adapted + rest
}

/// The target of a link in the package; `None` if the package does not contain it.
fn packaged_link(
    target: &str,
    document: &Path,
    is_packaged: impl Fn(&Path) -> bool,
) -> Option<String> {
    let (file, _) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() || target.contains("://") {
        return Some(target.to_owned());
    }
    let file = normal(&document.parent()?.join(file));
    if let Some((_, place)) = ELSEWHERE.iter().find(|(here, _)| Path::new(here) == file) {
        return Some((*place).to_owned());
    }
    is_packaged(&file).then(|| target.to_owned())
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normal.pop(),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    #[test]
    fn links_that_lead_out_of_the_package_become_text() {
        let text = "See [the guide](docs/guide.md#start), [contributing](CONTRIBUTING.md), \
                    [the file](lb-user/memlb.toml) and [all](https://example.org/).";
        let adapted = adapt(text, Path::new("README.md"), |it| {
            it == Path::new("docs/guide.md")
        });
        assert_eq!(
            adapted,
            "See [the guide](docs/guide.md#start), contributing, \
             [the file](/etc/memlb/memlb.toml) and [all](https://example.org/)."
        );
    }

    #[test]
    fn every_packaged_link_leads_somewhere() {
        let folder = tempfile::tempdir().unwrap();
        write(root(), folder.path()).unwrap();
        for document in documents(root()).unwrap() {
            let text = fs::read_to_string(folder.path().join(&document)).unwrap();
            for link in text.split("](").skip(1) {
                let target = link.split([')', '#']).next().unwrap();
                let is_file =
                    !target.is_empty() && !target.contains("://") && !target.starts_with('/');
                let file = normal(&document.parent().unwrap().join(target));
                let has = folder.path().join(&file).exists()
                    || BESIDE.iter().any(|it| file.starts_with(it)) && root().join(&file).exists();
                assert!(!is_file || has, "{}: {target}", document.display());
            }
        }
    }
}
