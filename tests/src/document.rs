//! Commands in a document.

use std::{fs, mem, ops::Range, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::command::output;

/// The variable with the program that replaces `cargo xtask` in documents.
pub const XTASK: &str = "MEMLB_XTASK";

/// The code of a Markdown file.
#[derive(Debug)]
pub struct Document {
    pub name: String,
    pub blocks: Vec<Block>,
    /// The code spans in the text.
    pub spans: Vec<String>,
}

/// A block of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it is, as `FILE:LINE`.
    pub place: String,
    /// The heading above it.
    pub section: String,
    /// The info string of its fence, or an empty one.
    pub language: String,
    /// The HTML comment right before it.
    pub remark: Option<String>,
    pub text: String,
}

impl Document {
    /// Reads the file `name` below `root`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(root: &Path, name: &str) -> Result<Self> {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))?;
        Ok(Self::parse(name, &text))
    }

    fn parse(name: &str, text: &str) -> Self {
        let mut document = Self {
            name: name.to_owned(),
            blocks: Vec::new(),
            spans: Vec::new(),
        };
        let (mut section, mut remark) = (String::new(), None);
        let mut events = Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter();
        while let Some((event, Range { start, .. })) = events.next() {
            match event {
                Event::Html(html) => remark = comment(&html),
                Event::Start(Tag::HtmlBlock) | Event::End(_) => {}
                Event::Start(Tag::Heading { .. }) => section = words(&mut events),
                Event::Start(Tag::CodeBlock(kind)) => {
                    let line = text[..start].lines().count() + 1;
                    document.blocks.push(Block {
                        place: format!("{name}:{line}"),
                        section: section.clone(),
                        language: match kind {
                            CodeBlockKind::Fenced(language) => language.to_string(),
                            CodeBlockKind::Indented => "indented".to_owned(),
                        },
                        remark: remark.take(),
                        text: words(&mut events),
                    });
                }
                Event::Code(code) => document.spans.push(code.to_string()),
                _ => remark = None,
            }
        }
        document
    }
}

impl Block {
    /// Returns its complete shell commands; in a recorded session, those after a prompt.
    ///
    /// # Errors
    /// When a shell cannot parse them.
    pub fn commands(&self) -> Result<Vec<String>> {
        let typed = |line| match self.language.as_str() {
            "sh" => Some(line),
            "console" => ["$ ", "# "]
                .iter()
                .find_map(|prompt| str::strip_prefix(line, prompt)),
            _ => None,
        };
        let (mut commands, mut draft) = (Vec::new(), String::new());
        for line in self.text.lines().filter_map(typed) {
            draft += line;
            draft.push('\n');
            if is_complete(&draft) {
                commands.push(mem::take(&mut draft));
            }
        }
        ensure!(
            draft.is_empty(),
            "{}: no shell understands:\n{draft}",
            self.place
        );
        commands.retain(|command| !command.trim().is_empty() && !command.starts_with('#'));
        Ok(commands)
    }
}

/// Collects the text of a heading or of a block of code.
fn words<'a>(events: &mut impl Iterator<Item = (Event<'a>, Range<usize>)>) -> String {
    let inside =
        |event: &Event<'_>| !matches!(event, Event::End(TagEnd::Heading(_) | TagEnd::CodeBlock));
    let inside = events.map(|(event, _)| event).take_while(inside);
    inside
        .filter_map(|event| match event {
            Event::Text(text) | Event::Code(text) => Some(text.to_string()),
            _ => None,
        })
        .collect()
}

fn comment(html: &str) -> Option<String> {
    let inside = html.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    Some(inside.trim().to_owned())
}

/// Whether it is complete for a shell, without a further line.
fn is_complete(draft: &str) -> bool {
    let parsed = output(Command::new("bash").args(["-n", "-c", draft]));
    parsed.is_ok() && !draft.trim_end().ends_with('\\')
}

#[cfg(test)]
mod tests {
    use super::Document;

    const TEXT: &str = "\
# Title
Say `memlb status`, and `cargo
xtask lab`.

<!-- on worker1 -->
```sh
memlb agent \\
    --manager X    # as above
# only a remark
{ echo one; } |
    wc
```

A paragraph.

```console
$ memlb status
worker1 up
# memlb doctor
```
";

    #[test]
    fn finds_commands_and_where_they_are_typed() {
        let document = Document::parse("a.md", TEXT);
        assert_eq!(document.spans, ["memlb status", "cargo xtask lab"]);
        let [first, second] = &document.blocks[..] else {
            panic!("{document:?}");
        };
        assert_eq!(first.place, "a.md:6");
        assert_eq!(first.section, "Title");
        assert_eq!(first.remark.as_deref(), Some("on worker1"));
        assert_eq!(
            first.commands().unwrap(),
            [
                "memlb agent \\\n    --manager X    # as above\n",
                "{ echo one; } |\n    wc\n"
            ]
        );
        assert_eq!(second.remark, None);
        assert_eq!(
            second.commands().unwrap(),
            ["memlb status\n", "memlb doctor\n"]
        );
    }

    #[test]
    fn refuses_commands_that_no_shell_parses() {
        let document = Document::parse("a.md", "```sh\nif true\n```\n");
        let error = document.blocks[0].commands().unwrap_err().to_string();
        assert!(error.contains("a.md:1"), "{error}");
    }
}
