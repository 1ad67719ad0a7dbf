//! The manual page of the configuration file, `memlb.toml(5)`, generated from the declarations of the keys.

use std::fmt::Write;

use super::example::{HEADER, facts, tables};
use super::section::KeyDescription;

/// Returns the page in roff.
pub fn render() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(".TH memlb.toml 5 \"\" \"memlb {version}\" \"File formats\"\n");
    page += ".SH NAME\nmemlb.toml \\- configuration of the memlb manager\n";
    page += ".SH SYNOPSIS\n/etc/memlb/memlb.toml\n.SH DESCRIPTION\n";
    let header: Vec<&str> = HEADER
        .lines()
        .map(|it| it.trim_start_matches('#'))
        .collect();
    page += &paragraphs(&header);
    for table in tables() {
        _ = writeln!(page, ".SH {}", escape(table.header));
        page += &paragraphs(table.about);
        for described in &table.keys {
            page += &key(described, table.header.starts_with("[["));
        }
    }
    page +=
        ".SH SEE ALSO\n.BR memlb\\-manager (1),\n.BR memlb\\-check (1),\n.BR memlb\\-reload (1)\n";
    page
}

fn key(described: &KeyDescription, is_repeated: bool) -> String {
    let KeyDescription { key, default, .. } = described;
    let mut text = format!(".TP\n.B {}\n", escape(key.name));
    text += &paragraphs(key.doc);
    let facts = facts(described, is_repeated).join(" ");
    let value = match key.is_required {
        true => format!("Example: {}", key.example.unwrap_or(default)),
        false => format!("Default: {default}"),
    };
    for line in [facts, value.replace('\n', " ")] {
        if !line.is_empty() {
            _ = writeln!(text, ".br\n{}", escape(&line));
        }
    }
    text
}

/// Lines of a doc comment in roff; an indented line begins a new line.
fn paragraphs(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let is_list = line.starts_with("   ") && !line.starts_with("      ");
        if line.trim().is_empty() {
            text += ".sp\n";
            continue;
        }
        if is_list {
            text += ".br\n";
        }
        _ = writeln!(text, "{}", escape(line.trim()));
    }
    text
}

/// Escapes what roff would interpret.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\(rs").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_key() {
        let page = render();
        for table in tables() {
            assert!(page.contains(&format!(".SH {}\n", escape(table.header))));
            for described in table.keys {
                assert!(page.contains(&format!(".TP\n.B {}\n", escape(described.key.name))));
            }
        }
        assert!(page.contains("Default: \"1500ms\""), "{page}");
    }
}
